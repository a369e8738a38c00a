"""Training: state, step, optimizers, loop, checkpoints and logs."""

from fmjax.train import schedules
from fmjax.train.optimizers import DECAY, adamw
from fmjax.train.state import TrainState
from fmjax.train.step import TRAIN_ADAPTER, TRAIN_PARAMS, Objective, Step, make_step

__all__ = [
    "DECAY",
    "TRAIN_ADAPTER",
    "TRAIN_PARAMS",
    "Objective",
    "Step",
    "TrainState",
    "adamw",
    "make_step",
    "schedules",
]
