"""A fine-tuning run on a task, from files to files."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError, DataError
from fmjax.data.tasks import eval_task_batches, task_batches
from fmjax.models.registry import get_family
from fmjax.parallel import DEFAULT_RULES, shard_batch
from fmjax.peft.base import Base
from fmjax.recipes.models import compute_dtype, parse_mesh, resolve_directory
from fmjax.recipes.tasks.embedding import EmbeddingTask
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.inference import Predictor
from fmjax.recipes.tasks.results import write_results
from fmjax.recipes.tasks.task import Measured, Metrics, Reading, Task
from fmjax.recipes.tasks.tasks import TASKS
from fmjax.recipes.tasks.vectors import write_pooling
from fmjax.recipes.training import METRICS
from fmjax.train import EarlyStopping, adamw, fit, layerwise_decay, make_step, schedules
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.loggers import JsonlLogger, TensorBoardLogger

# Where LoRA goes by default: the projections onto queries and values, in the families' own names.
QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "c_attn", "query_key_value")


def finetune(settings: FinetuneTask) -> Measured | None:
    """Trains, measures and exports; see `FinetuneTask.run`.

    Returns:
      The figures on the examples to measure on; None if a signal ended the run early.
    """
    _check(settings)
    start = resolve_directory(settings.model, heads=None)
    mesh = parse_mesh(settings.hardware.mesh)
    seed, size = settings.optimization.seed, settings.optimization.batch_size
    task, *examples, notes = TASKS[settings.task].read(settings)
    files = settings.examples
    reading = Reading.of(start.tokenizer, start.config, files.max_length, files.stride)
    train, valid = (task.prepare(e, reading) for e in examples)
    notes += [f"to train on: {train.note}", f"to measure on: {valid.note}"]
    print(*notes, sep="\n")
    batches = task_batches(train.features, size, seed=seed, **reading.padding)
    held_out = eval_task_batches(valid.features, size, **reading.padding)
    model, variables, spec = _model(settings, task, mesh)
    steps = settings.steps(len(train.features))
    rate = _schedule(settings, steps)
    step = make_step(
        model,
        task.objective(settings.optimization, train.examples),
        _optimizer(settings, rate, model.config.num_hidden_layers),
        mesh=mesh,
        accumulate=settings.optimization.accumulate,
        clip_norm=settings.optimization.clip_norm or None,
        learning_rate=rate,
    )
    state = step.init(variables, jax.random.key(seed + 1))
    number, total = tree.count(step.split(state.variables)[0]), tree.count(variables["params"])
    trained = f"{number:,} of {total:,} parameters trained ({number / total:.2%})"
    print(f"{trained}, {steps:,} steps")
    del variables
    predictor = Predictor(model, task.pick, mesh, step.objective)

    def measure(variables: Any, thorough: bool = False) -> Measured:
        outputs, means = predictor(variables, held_out)
        found = task.measure(valid, outputs, thorough)
        return dataclasses.replace(found, metrics={"loss": means["loss"], **found.metrics})

    metric = settings.optimization.metric or task.metric
    if settings.optimization.metric:
        _check_metric(metric, measure(state.variables).metrics)

    def evaluate(state: Any) -> Metrics:
        metrics = measure(state.variables).metrics
        return {**task.headline(metrics), metric: metrics[metric]}

    stop = EarlyStopping(metric, task.mode(metric), settings.optimization.patience or None)
    out = Path(settings.out)
    checkpointer = Checkpointer(
        out / "checkpoints",
        keep=1,
        best=stop.best,
        config={**settings.record(), "architecture": model.config.to_hf()},
        base=str(settings.model),
    )
    loggers = [JsonlLogger(out / METRICS)]
    if settings.tensorboard:
        loggers.append(TensorBoardLogger(out / "tensorboard"))
    try:
        outcome = fit(
            step,
            state,
            batches,
            steps=steps,
            checkpointer=checkpointer,
            evaluate=evaluate,
            eval_every=settings.eval_every(len(train.features)),
            stop_early=stop,
            log_every=settings.log_every,
            loggers=loggers,
        )
        if outcome.stopped:
            print(f"stopped after step {outcome.step}; the same command goes on from there")
            return None
        if outcome.best_step is None:
            raise DataError(
                f"{metric} was not finite at any evaluation: the labels to measure on are all "
                "alike, or the training went astray; give others with --valid, or choose another "
                "--metric or a lower --learning-rate, and another --out"
            )
        best = outcome.best(release=True)
    finally:
        checkpointer.close()
        batches.close()
    measured = measure(best.variables, thorough=True)
    _export(settings, task, model, best.variables, spec)
    write_results(settings, measured, metric, outcome, trained, notes)
    return measured


def _check(settings: FinetuneTask) -> None:
    """What can be known before a file is read."""
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


def _check_metric(metric: str, metrics: Metrics) -> None:
    """Before the training whose best state it chooses, not after the first evaluation of it."""
    if metric not in metrics:
        raise ConfigError(f"no metric {metric!r} to choose by; --metric takes {', '.join(metrics)}")


def _model(
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


def _optimizer(settings: FinetuneTask, rate: Any, layers: int) -> optax.GradientTransformation:
    optimization = settings.optimization
    optimizer = adamw(rate, b2=0.999, weight_decay=optimization.weight_decay)
    if optimization.layer_decay == 1:
        return optimizer
    return optax.chain(optimizer, layerwise_decay(optimization.layer_decay, layers))


def _schedule(settings: FinetuneTask, steps: int) -> optax.Schedule:
    optimization, peak = settings.optimization, settings.learning_rate
    warmup = round(optimization.warmup_fraction * steps)
    match optimization.schedule:
        case "linear":
            return schedules.linear(peak, steps, warmup=warmup)
        case "cosine":
            return schedules.warmup_cosine(peak, steps, warmup=warmup)
        case "constant":
            return schedules.constant(peak, warmup=warmup)
    raise ConfigError(f"no schedule {optimization.schedule!r}; use linear, cosine or constant")


def _export(settings: FinetuneTask, task: Task, model: Any, variables: Any, spec: Any) -> None:
    params = variables["params"]
    if spec is not None:
        target = settings.out / "adapter"
        base = str(settings.model)
        peft.save(target, spec, variables["adapter"], model, base=base, params=params)
        params = peft.merge(model, params, variables["adapter"])
    target = settings.out / "model"
    fmjax.save_pretrained(target, model, params, carry_from=settings.model)
    if isinstance(task, EmbeddingTask):
        write_pooling(target, model.config.hidden_size, task.pooling, settings.examples.max_length)
