"""Training: state, step, optimizers, loop, checkpoints and logs."""

from typing import Any

from fmjax.train import schedules
from fmjax.train.device_peaks import peak_flops
from fmjax.train.early_stopping import EarlyStopping
from fmjax.train.ema import averaged, ema_params, with_ema
from fmjax.train.evaluate import evaluate
from fmjax.train.flops import matmul_params, train_flops_per_token
from fmjax.train.held import held
from fmjax.train.lars import lars
from fmjax.train.layerwise import freeze_layers, layerwise_decay
from fmjax.train.loggers import JsonlLogger, Logger, TensorBoardLogger
from fmjax.train.loop import fit
from fmjax.train.optimizers import DECAY, adamw
from fmjax.train.outcome import Outcome
from fmjax.train.profile import Profile
from fmjax.train.rates import lora_plus, scale_by_path
from fmjax.train.state import TrainState
from fmjax.train.step import Objective, Step, make_step
from fmjax.train.trainable import TRAIN_ADAPTER, TRAIN_PARAMS, freeze

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
    "Profile",
    "Step",
    "TensorBoardLogger",
    "TrainState",
    "adamw",
    "averaged",
    "ema_params",
    "evaluate",
    "fit",
    "freeze",
    "freeze_layers",
    "held",
    "lars",
    "layerwise_decay",
    "lora_plus",
    "make_step",
    "matmul_params",
    "peak_flops",
    "scale_by_path",
    "schedules",
    "train_flops_per_token",
    "with_ema",
]


def __getattr__(name: str) -> Any:
    # Orbax takes seconds to import, and a step needs none of it.
    if name == "Checkpointer":
        from fmjax.train.checkpoint import Checkpointer

        return Checkpointer
    raise AttributeError(f"module 'fmjax.train' has no attribute {name!r}")
