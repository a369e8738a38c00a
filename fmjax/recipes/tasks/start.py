"""What a fine-tuning run starts from: settings that hold, a model with a head, an optimizer."""

from pathlib import Path
from typing import Any

import jax
import optax

import fmjax
from fmjax import peft
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.models.registry import get_family
from fmjax.parallel import DEFAULT_RULES, shard_batch
from fmjax.peft.base import Base
from fmjax.recipes import training
from fmjax.recipes.models import compute_dtype, parse_mesh
from fmjax.recipes.options import Optimization
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.task import Task
from fmjax.train import adamw, layerwise_decay

# Where LoRA goes by default: the projections onto queries and values, in the families' own names.
QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "c_attn", "query_key_value")


def check(settings: FinetuneTask) -> None:
    """Refuses what can be refused before a file is read.

    Raises:
      CheckpointError, ConfigError, ShardingError: settings that cannot be used.
    """
    optimization = settings.optimization
    for name in ("batch_size", "accumulate"):
        if getattr(optimization, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {getattr(optimization, name)} must be at least 1")
    if settings.log_every < 1:
        raise ConfigError(f"--log-every {settings.log_every} must be at least 1")
    if optimization.epochs <= 0 or optimization.steps < 0:
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
    mesh = parse_mesh(settings.hardware.mesh)
    row = jax.ShapeDtypeStruct((optimization.batch_size,), "int32")
    shard_batch({"--batch-size": row}, mesh, DEFAULT_RULES, optimization.accumulate)


def open_model(
    settings: FinetuneTask, task: Task, mesh: jax.sharding.Mesh
) -> tuple[Any, dict[str, Any], Any]:
    """(module with the task's head, variables, LoRA's spec or None)."""
    adaptation, seed = settings.adaptation, settings.optimization.seed
    dtype = compute_dtype(settings.hardware.dtype)
    lora = adaptation.method == "lora"
    model, params = fmjax.from_pretrained(
        settings.model,
        dtype=dtype,
        # Frozen weights need no more precision than the computation; trained ones do.
        param_dtype=dtype if lora else "float32",
        remat=settings.hardware.remat,
        mesh=mesh,
        override=task.override(),
        new_head=jax.random.key(seed),
    )
    variables = {"params": params}
    if not lora:
        return model, variables, None
    spec = peft.LoRA(
        adaptation.rank,
        adaptation.alpha,
        _targets(adaptation.targets, model),
        adaptation.lora_dropout,
        modules_to_save=head_modules(model) if task.head else (),
    )
    variables["adapter"] = peft.init(jax.random.key(seed + 2), spec, model, params)
    return model, variables, spec


def _targets(named: tuple[str, ...], model: Any) -> tuple[str, ...] | str:
    if named:
        return named[0] if named == ("all-linear",) else named
    kinds = Base.of(model).kinds()
    return tuple(kind for kind in kinds if kind in QUERY_VALUE) or "all-linear"


def head_modules(model: Any) -> tuple[str, ...]:
    """Names of the modules that belong to the model's head, a pooler under it included."""
    pattern = get_family(model.config.model_type).head_tensors
    names = [name for weight in Base.of(model).weights for name in weight.names]
    found = [match.group() for name in names if (match := pattern.match(f"{name}."))]
    return tuple(dict.fromkeys(name.rstrip(".").rpartition(".")[2] for name in found))


def optimizer(settings: FinetuneTask, rate: Any, layers: int) -> optax.GradientTransformation:
    """AdamW, with smaller steps in lower layers where that is asked for."""
    optimization = settings.optimization
    adam = adamw(rate, b2=0.999, weight_decay=optimization.weight_decay)
    if optimization.layer_decay == 1:
        return adam
    return optax.chain(adam, layerwise_decay(optimization.layer_decay, layers))


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
