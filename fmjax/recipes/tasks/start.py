"""What a fine-tuning run on a task starts from: settings that hold, and a schedule."""

import math
from pathlib import Path

import optax

from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.models.config import ModelConfig
from fmjax.recipes import training
from fmjax.recipes.layout import Layout, lay_out
from fmjax.recipes.options import Optimization
from fmjax.recipes.tasks.finetune import FinetuneTask


def check(settings: FinetuneTask) -> None:
    """Refuses what can be refused before a file is read.

    Raises:
      CheckpointError, ConfigError: settings that cannot be used.
    """
    optimization = settings.optimization
    settings.adaptation.check()
    for name in ("batch_size", "accumulate"):
        if getattr(optimization, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {getattr(optimization, name)} must be at least 1")
    if settings.log_every < 1:
        raise ConfigError(f"--log-every {settings.log_every} must be at least 1")
    if not 0 < optimization.epochs < math.inf or optimization.steps < 0:
        raise ConfigError("--epochs must be more than 0, and --steps 0 or more")
    if not 0 <= optimization.warmup_fraction <= 1:
        raise ConfigError(f"--warmup-fraction {optimization.warmup_fraction} must lie in 0 to 1")
    files = settings.examples
    if not files.valid and not 0 < files.valid_fraction < 1:
        raise ConfigError(f"--valid-fraction {files.valid_fraction} must lie between 0 and 1")
    for name in ("eval_every", "patience"):
        if getattr(optimization, name) < 0:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {getattr(optimization, name)} must not be negative")
    if Path(settings.out).is_file():
        raise CheckpointError(f"{settings.out} is a file; give a directory for the run")


def laid_out(settings: FinetuneTask, config: ModelConfig) -> Layout:
    """The layout of the run, which `check` has passed.

    Raises:
      ShardingError: devices, rules and batch that do not fit.
    """
    optimization = settings.optimization
    size, parts = optimization.batch_size, optimization.accumulate
    return lay_out(settings.hardware, config, settings.adaptation, size, parts)


def schedule(settings: FinetuneTask, steps: int) -> optax.Schedule:
    """The learning rate by update."""
    optimization = settings.optimization
    return training.schedule(
        Optimization(
            steps=steps,
            learning_rate=settings.learning_rate,
            schedule=optimization.schedule,
            warmup=round(optimization.warmup_fraction * steps),
        )
    )
