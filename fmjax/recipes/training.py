"""The training run that pretraining and fine-tuning share."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.data import Tokenizer
from fmjax.recipes.adaptation import Adapted, starting_weights
from fmjax.recipes.batches import Batches, open_batches
from fmjax.recipes.layout import Layout, lay_out
from fmjax.recipes.measure import check_length
from fmjax.recipes.objective import (
    ComparedMaskedLM,
    choose,
    is_masked,
    masked_summary,
    unigram_baseline,
)
from fmjax.recipes.options import Adaptation, Masking, Optimization
from fmjax.train import Profile, Step, evaluate, fit, make_step, schedules
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.flops import matmul_params, train_flops_per_token
from fmjax.train.loggers import JsonlLogger, TensorBoardLogger
from fmjax.train.state import TrainState

METRICS = "metrics.jsonl"
FREE = ("optimization.steps",)
"""Settings that may differ when a run goes on from its checkpoint."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose settings and text have been checked; nothing is written yet.

    Attributes:
      settings: a `Pretrain` or `Finetune`.
      config: of the model.
      optimization: with every figure that the settings leave to the objective.
      objective: what it minimises.
      batches: what it reads.
      layout: its devices, and what lies where.
      rate: learning rate by update.
    """

    settings: Any
    config: Any
    optimization: Optimization
    objective: Any
    batches: Batches
    layout: Layout
    rate: Any

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """Its devices."""
        return self.layout.mesh

    @classmethod
    def open(cls, settings: Any, config: Any, tokenizer: Tokenizer) -> "Run":
        """Checks everything that can be checked before the model is in memory.

        Raises:
          FmjaxError: settings that cannot be used, or text that cannot be read.
        """
        data, cadence = settings.data, settings.cadence
        optimization = settings.optimization.completed(is_masked(config))
        if optimization.steps < 1:
            raise ConfigError(f"--steps {optimization.steps} must be at least 1")
        for name in ("log_every", "checkpoint_every", "keep", "eval_batches"):
            if getattr(cadence, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} {getattr(cadence, name)} must be at least 1")
        if Path(settings.out).is_file():
            raise CheckpointError(f"{settings.out} is a file; give a directory for the run")
        rate = schedule(optimization)
        adaptation = getattr(settings, "adaptation", Adaptation())
        check_length(config, data.sequence_length, adaptation.positions)
        layout = lay_out(
            settings.hardware, config, adaptation, data.batch_size, optimization.accumulate
        )
        masking = getattr(settings, "masking", Masking())
        objective = choose(config, tokenizer, masking, optimization)
        evaluated = cadence.eval_every > 0
        words = masking.whole_words
        batches = open_batches(data, tokenizer, optimization.seed, evaluated, words)
        return cls(settings, config, optimization, objective, batches, layout, rate)

    def step(self, adapted: Adapted) -> Step:
        """The jitted update of what is trained."""
        optimization = self.optimization
        optimizer = adapted.optimizer(
            self.rate,
            b2=optimization.beta2,
            eps=optimization.epsilon,
            weight_decay=optimization.weight_decay,
        )
        return make_step(
            adapted.apply,
            self.objective,
            optimizer,
            mesh=self.layout.mesh,
            rules=self.layout.rules,
            trainable=adapted.trainable,
            accumulate=optimization.accumulate,
            clip_norm=optimization.clip_norm or None,
            learning_rate=self.rate,
            offload=self.settings.hardware.offloaded,
        )

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what a step reads."""
        data = self.settings.data
        names = ["input_ids", "position_ids", "segment_ids"]
        if getattr(self.objective, "whole_words", False):
            names.append("word_ids")
        row = jax.ShapeDtypeStruct((data.batch_size, data.sequence_length), np.int32)
        return dict.fromkeys(names, row)

    def evaluation(self) -> Iterator[Any]:
        """The evaluation's batches, afresh."""
        return itertools.islice(iter(self.batches.held_out), self.settings.cadence.eval_batches)

    def compared(self) -> "Run":
        """The same, whose evaluations of gaps report the unigram baseline, where it is known."""
        counts = self.batches.train.token_counts(self.config.vocab_size)
        if not is_masked(self.config) or self.batches.held_out is None or counts is None:
            return self
        baseline = unigram_baseline(self.objective, counts, self.evaluation, self.mesh)
        objective = ComparedMaskedLM(**vars(self.objective), baseline=baseline)
        return dataclasses.replace(self, objective=objective)


def train(run: Run, adapted: Adapted, *, drawn: bool = False) -> TrainState | None:
    """Trains to the last step, from the newest checkpoint if the run's directory has one.

    Args:
      run: what to do.
      adapted: the model, and what is trained of it; its variables are consumed.
      drawn: its weights were drawn by the seed, not loaded.

    Returns:
      The last state, or None if SIGTERM or Ctrl-C ended the run early (its state is saved).

    Raises:
      CheckpointError: the directory holds a run with other settings, or cannot be written.
    """
    settings, optimization, cadence = run.settings, run.optimization, run.settings.cadence
    run = run.compared()
    step, variables = run.step(adapted), adapted.variables
    state = step.init(variables, jax.random.key(optimization.seed + 1))
    trained, frozen = step.split(state.variables)
    # Tracing finds what does not fit before the run's directory is made.
    step.lower(state, run.abstract_batch())
    _announce(run, trained)
    flops = _flops(run, state.variables, "adapter" in variables)
    record = _record(run) | ({} if drawn else starting_weights(state.variables))
    del variables, trained, frozen
    out = Path(settings.out)
    profile = Profile.of(settings.hardware.profile, out / "profile")
    held_out = run.batches.held_out
    checkpointer = Checkpointer(
        out / "checkpoints",
        keep=cadence.keep,
        best=None if held_out is None else ("eval_loss", "min"),
        config=record,
        free=FREE,
        base=str(settings.model),
    )
    loggers = [JsonlLogger(out / METRICS)]
    if cadence.tensorboard:
        loggers.append(TensorBoardLogger(out / "tensorboard"))

    try:
        outcome = fit(
            step,
            state,
            run.batches.train,
            steps=optimization.steps,
            checkpointer=checkpointer,
            save_every=cadence.checkpoint_every,
            eval_batches=None if held_out is None else run.evaluation,
            eval_every=cadence.eval_every or None,
            log_every=cadence.log_every,
            loggers=loggers,
            flops_per_step=flops,
            profile=profile,
        )
    finally:
        checkpointer.close()
        run.batches.train.close()
    if outcome.stopped:
        print(f"stopped after step {outcome.step}; the same command goes on from there")
        return None
    if is_masked(run.config) and held_out is not None:
        # A run that had nothing left to train has not been evaluated.
        last = {name: outcome.metrics.get(f"eval_{name}") for name in ("loss", "accuracy")}
        if None in last.values():
            last = evaluate(step, outcome.state, run.evaluation())
        print(masked_summary(last, getattr(run.objective, "baseline", None)))
    print(f"log: {out / METRICS}, checkpoints: {out / 'checkpoints'}")
    return outcome.state


def schedule(optimization: Optimization) -> Any:
    """The learning rate by update."""
    peak, steps = optimization.learning_rate, optimization.steps
    warmup = optimization.warmup
    match optimization.schedule:
        case "cosine":
            return schedules.warmup_cosine(peak, steps, warmup=warmup)
        case "wsd":
            return schedules.warmup_stable_decay(peak, steps, warmup=warmup)
        case "linear":
            return schedules.linear(peak, steps, warmup=warmup)
        case "constant":
            return schedules.constant(peak, warmup=warmup)
    raise ConfigError(f"no schedule {optimization.schedule!r}; use cosine, wsd, linear or constant")


def _record(run: Run) -> dict[str, Any]:
    """What a checkpoint remembers of the run and compares when it goes on."""
    record = dataclasses.asdict(run.settings)
    for name in ("cadence", "hardware", "model", "out", "override", "tokenizer"):
        record.pop(name, None)
    if not is_masked(run.config):
        record.pop("masking", None)
    # The warm-up may follow from the steps, which may change.
    warmup = run.settings.optimization.warmup
    record["optimization"] = dataclasses.asdict(run.optimization) | {"warmup": warmup}
    for name in ("eval_data", "eval_fraction"):
        record["data"].pop(name)
    return record | {"architecture": run.config.to_hf()}


def _flops(run: Run, variables: dict[str, Any], adapted: bool) -> float:
    config, data = run.config, run.settings.data
    base = matmul_params(variables["params"], getattr(config, "expert_share", 1.0))
    per_token = train_flops_per_token(
        tree.count(variables["adapter"]) if adapted else base,
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * config.head_dim,
        sequence_length=data.sequence_length,
        causal=not is_masked(config),
        frozen=base if adapted else 0,
    )
    return per_token * data.batch_size * data.sequence_length


def _announce(run: Run, trained: Any) -> None:
    data = run.settings.data
    devices = " × ".join(f"{axis} {n}" for axis, n in run.mesh.shape.items() if n > 1)
    kind = run.mesh.devices.flat[0].device_kind
    print(
        f"{tree.count(trained):,} trained parameters, "
        f"{data.batch_size * data.sequence_length:,} tokens a step, "
        f"{run.mesh.size} × {kind}" + (f" ({devices})" if devices else "")
    )
