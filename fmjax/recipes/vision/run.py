"""A pretraining run on images, from files to files: one path for every objective."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import fmjax
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.objectives import LAST_LAYER, Augmented
from fmjax.recipes.layout import Layout, lay_out
from fmjax.recipes.models import compute_dtype
from fmjax.recipes.options import Adaptation
from fmjax.recipes.training import METRICS
from fmjax.recipes.vision.figures import Figures, completed
from fmjax.recipes.vision.image_sets import Pictures, open_pictures
from fmjax.recipes.vision.learner import Given, Learner
from fmjax.recipes.vision.learners import LEARNERS
from fmjax.recipes.vision.measuring import Measure
from fmjax.recipes.vision.pretrain import PretrainImages
from fmjax.recipes.vision.run_report import write_report
from fmjax.recipes.vision.settings import ImageOptimization
from fmjax.recipes.vision.start import ImageStart, resolve_images
from fmjax.train import (
    Profile,
    Step,
    TrainState,
    adamw,
    evaluate,
    fit,
    held,
    lars,
    make_step,
    schedules,
)
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.loggers import JsonlLogger, TensorBoardLogger


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose settings and pictures have been checked; nothing is written yet.

    Attributes:
      settings: as given.
      optimization: with every figure.
      paper: whose figures those are.
      start: architecture and weights to start from.
      pictures: what it reads.
      learner: model and objective.
      layout: devices, and what lies where.
    """

    settings: PretrainImages
    optimization: ImageOptimization
    paper: Figures
    start: ImageStart
    pictures: Pictures
    learner: Learner
    layout: Layout

    @classmethod
    def open(cls, settings: PretrainImages) -> "Run":
        """Checks everything that can be checked before the model is in memory.

        Raises:
          FmjaxError: settings that cannot be used, or pictures that cannot be read.
        """
        _check(settings)
        start = resolve_images(settings)
        optimization, paper = completed(
            settings.optimization,
            settings.objective,
            settings.data.batch_size,
            start.config.model_type == "resnet",
        )
        layout = lay_out(
            settings.hardware,
            start.config,
            Adaptation(),
            settings.data.batch_size,
            optimization.accumulate,
        )
        pictures = open_pictures(settings, start)
        hardware = settings.hardware
        execution = {
            "dtype": compute_dtype(hardware.dtype),
            "param_dtype": "float32",
            "remat": hardware.remat,
            "attention": hardware.attention,
            "matmul": hardware.matmul,
            "microbatches": hardware.microbatches,
        }
        what = Given.of(settings, optimization, paper, start, pictures.classes, execution)
        learner = LEARNERS[settings.objective](what)
        return cls(settings, optimization, paper, start, pictures, learner, layout)

    def step(self) -> Step:
        """The jitted update."""
        optimization = self.optimization
        rate = schedules.warmup_cosine(
            optimization.learning_rate,
            optimization.steps,
            warmup=min(optimization.warmup, optimization.steps - 1),
            end=0.0,
        )
        if optimization.optimizer == "lars":
            optimizer = lars(rate, weight_decay=optimization.weight_decay)
        else:
            decay = self._decay()

            def build(start: int) -> Any:
                return adamw(
                    schedules.later(rate, start),
                    b2=optimization.beta2,
                    eps=self.paper.epsilon,
                    weight_decay=schedules.later(decay, start),
                )

            optimizer = held(build, LAST_LAYER, self.learner.held_steps)
        return make_step(
            self.learner.module,
            Augmented(self.learner.objective, self.learner.augment, self.pictures.whole),
            optimizer,
            mesh=self.layout.mesh,
            rules=self.layout.rules,
            trainable=self.learner.trainable,
            accumulate=optimization.accumulate,
            clip_norm=optimization.clip_norm or None,
            learning_rate=rate,
            offload=self.settings.hardware.offloaded,
        )

    def _decay(self) -> Any:
        """The weight decay that was asked for; else the paper's, or its schedule."""
        first, last = self.optimization.weight_decay, self.paper.final_weight_decay
        if last is None or self.settings.optimization.weight_decay is not None:
            return first
        return schedules.cosine(first, last, self.optimization.steps)

    def train(self) -> bool:
        """Trains to the last step, from the newest checkpoint if there is one; then exports.

        Returns:
          False where a signal ended the run early.

        Raises:
          CheckpointError: the directory holds a run with other settings, or cannot be written.
        """
        settings, optimization, probing = self.settings, self.optimization, self.settings.probing
        step, place = self.step(), {"mesh": self.layout.mesh, "rules": self.layout.rules}
        params = self.start.params(self.learner.module, optimization.seed, **place)
        state = step.init({"params": params}, jax.random.key(optimization.seed + 1))
        del params
        # Tracing finds what does not fit before the run's directory is made.
        step.lower(state, self.pictures.abstract)
        self._announce(step.split(state.variables)[0])
        out = Path(settings.out)
        measure = Measure.of(self.learner, self.pictures, probing, self.layout)
        before = measure.accuracy(state) if measure.votes else None
        checkpointer = Checkpointer(
            out / "checkpoints",
            keep=probing.keep,
            config=self._record(),
            free=("optimization.steps",) if self._steps_are_free else (),
            base=settings.model,
        )
        loggers = [JsonlLogger(out / METRICS)]
        if probing.tensorboard:
            loggers.append(TensorBoardLogger(out / "tensorboard"))
        try:
            outcome = fit(
                step,
                state,
                self.pictures.train,
                steps=optimization.steps,
                checkpointer=checkpointer,
                save_every=probing.checkpoint_every,
                evaluate=functools.partial(self._evaluate, step, measure),
                eval_every=probing.eval_every or optimization.steps,
                log_every=probing.log_every,
                loggers=loggers,
                profile=Profile.of(settings.hardware.profile, out / "profile"),
            )
        finally:
            checkpointer.close()
            self.pictures.train.close()
        if report := self.pictures.train.report():
            print(f"training pictures: {report}")
        if outcome.stopped:
            print(f"stopped after step {outcome.step}; the same command goes on from there")
            return False
        last = {k[5:]: v for k, v in outcome.metrics.items() if k.startswith("eval_")}
        if not last:  # a run that had nothing left to train
            last = self._objective(step, outcome.state)
        self._export(outcome.state)
        lines = list(measure.summary(outcome.state, before, last))
        if report := self.pictures.held_out.report():
            lines.append(f"held-out pictures: {report}")
        if jax.process_index():
            return True
        print("\n".join(lines))
        changed = ", with changes, " if settings.override else " "
        lead = (
            f"{settings.model}{changed}on {self.pictures.examples:,} pictures of "
            f"{settings.data.images}, {outcome.step:,} steps of {settings.data.batch_size:,}."
        )
        title = f"Pretraining by {settings.objective}"
        page = write_report(out, out / METRICS, title, lead, lines, measure, outcome.state)
        print(f"report: {page}, log: {out / METRICS}, model: {out / 'model'}")
        print(self._next())
        return True

    def _next(self) -> str:
        """A command to go on with."""
        model = Path(self.settings.out) / "model"
        if self.learner.needs == "captions":
            return f'next: fmjax retrieve --model {model} --images FOLDER --text "…"'
        if self.learner.needs == "labels":
            return f"next: fmjax classify --model {model} --images FOLDER"
        pooling = " --pooling mean" if self.settings.objective == "mae" else ""
        return f"next: fmjax embed --model {model} --images FOLDER{pooling} --output vectors.npy"

    def _evaluate(self, step: Step, measure: Measure, state: TrainState) -> Mapping[str, float]:
        return self._objective(step, state) | measure(state)

    def _objective(self, step: Step, state: TrainState) -> dict[str, float]:
        """Its own figures on what is held out, where it has some."""
        return dict(evaluate(step, state, self.pictures.held_out)) if self.learner.evaluates else {}

    def _export(self, state: TrainState) -> None:
        model, params = self.learner.export(state)
        target = Path(self.settings.out) / "model"
        fmjax.save_pretrained(
            target,
            model,
            params,
            self.start.tokenizer,
            carry_from=self.start.directory,
            image_processor=self.start.processor,
        )

    @property
    def _steps_are_free(self) -> bool:
        """Whether a run may go on to another last step: not where schedules of the objective and
        of the decay end there, which the learning rate's alone may."""
        return self.settings.objective not in ("dino", "dinov2")

    def _record(self) -> dict[str, Any]:
        """What a checkpoint remembers of the run and compares when it goes on."""
        record = dataclasses.asdict(self.settings)
        for name in ("probing", "hardware", "model", "out", "override", "tokenizer"):
            record.pop(name, None)
        warmup = self.settings.optimization.warmup
        record["optimization"] = dataclasses.asdict(self.optimization) | {"warmup": warmup}
        for name in ("eval_images", "workers"):
            record["data"].pop(name)
        return record | {"architecture": self.start.config.to_hf()}

    def _announce(self, trained: Any) -> None:
        mesh = self.layout.mesh
        devices = " × ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1)
        kind = mesh.devices.flat[0].device_kind
        print(
            f"{tree.count(trained):,} trained parameters, {self.pictures.examples:,} pictures, "
            f"{self.settings.data.batch_size:,} a step, {mesh.size} × {kind}"
            + (f" ({devices})" if devices else "")
        )


def _check(settings: PretrainImages) -> None:
    """Refuses what can be refused before a file is read.

    Raises:
      CheckpointError, ConfigError: settings that cannot be used.
    """
    optimization, probing, views = settings.optimization, settings.probing, settings.views
    heads = settings.heads
    least = {
        "steps": optimization.steps,
        "accumulate": optimization.accumulate,
        "batch_size": settings.data.batch_size,
        "workers": settings.data.workers,
        "checkpoint_every": probing.checkpoint_every,
        "keep": probing.keep,
        "log_every": probing.log_every,
        "neighbours": probing.neighbours,
        "held_out": probing.held_out,
        "bank": probing.bank,
        "projection": heads.projection,
        "hidden": heads.hidden,
        "prototypes": heads.prototypes,
    }
    for name, value in least.items():
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1")
    not_below_0 = {
        "whiten": probing.whiten,
        "eval_every": probing.eval_every,
        "image_size": settings.data.image_size,
        "stored_size": settings.data.stored_size,
        "caption_length": settings.data.caption_length,
        "color": views.color,
        "local_crops": views.local_crops,
        "local_size": views.local_size,
        "mixup": views.mixup,
        "cutmix": views.cutmix,
        "head_range": heads.head_range,
        "frozen_head_steps": heads.frozen_head_steps,
        "learning_rate": optimization.learning_rate,
        "warmup": optimization.warmup,
        "weight_decay": optimization.weight_decay,
        "clip_norm": optimization.clip_norm,
    }
    for name, value in not_below_0.items():
        if value is not None and not value >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must not be below 0")
    above_0 = {"temperature": heads.temperature, "teacher_temperature": heads.teacher_temperature}
    for name, value in above_0.items():
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be above 0")
    shares = {
        "teacher_momentum": heads.teacher_momentum,
        "label_smoothing": heads.label_smoothing,
        "beta2": optimization.beta2,
    }
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must lie in 0 to 1")
    if settings.objective in ("supervised", "clip", "siglip"):
        for name, unused in (("features", "auto"), ("whiten", 0)):
            if getattr(probing, name) != unused:
                raise ConfigError(
                    f"--{name} is of the vote by neighbours, which --objective "
                    f"{settings.objective} has not; leave it out"
                )
    crop = views.smallest_crop
    if crop is not None and not 0 < crop <= 1:
        raise ConfigError(f"--smallest-crop {crop} must lie in 0 to 1")
    only = {"mixup": "supervised", "cutmix": "supervised"}
    for name, objective in only.items():
        if getattr(views, name) and settings.objective != objective:
            raise ConfigError(
                f"--{name.replace('_', '-')} belongs to --objective {objective}, not to "
                f"{settings.objective}"
            )
    if Path(settings.out).is_file():
        raise CheckpointError(f"{settings.out} is a file; give a directory for the run")
