"""Training: state, step, optimizers, loop, checkpoints and logs."""

from typing import Any

from fmjax.train import schedules
from fmjax.train.device_peaks import peak_flops
from fmjax.train.early_stopping import EarlyStopping
from fmjax.train.evaluate import evaluate
from fmjax.train.flops import matmul_params, train_flops_per_token
from fmjax.train.layerwise import layerwise_decay
from fmjax.train.loggers import JsonlLogger, Logger, TensorBoardLogger
from fmjax.train.loop import fit
from fmjax.train.optimizers import DECAY, adamw
from fmjax.train.outcome import Outcome
from fmjax.train.state import TrainState
from fmjax.train.step import TRAIN_ADAPTER, TRAIN_PARAMS, Objective, Step, make_step

__all__ = [
    "DECAY",
    "TRAIN_ADAPTER",
    "TRAIN_PARAMS",
    "Checkpointer",
    "EarlyStopping",
    "JsonlLogger",
    "Logger",
    "Objective",
    "Outcome",
    "Step",
    "TensorBoardLogger",
    "TrainState",
    "adamw",
    "evaluate",
    "fit",
    "layerwise_decay",
    "make_step",
    "matmul_params",
    "peak_flops",
    "schedules",
    "train_flops_per_token",
]


def __getattr__(name: str) -> Any:
    # Orbax takes seconds to import, and a step needs none of it.
    if name == "Checkpointer":
        from fmjax.train.checkpoint import Checkpointer

        return Checkpointer
    raise AttributeError(f"module 'fmjax.train' has no attribute {name!r}")
