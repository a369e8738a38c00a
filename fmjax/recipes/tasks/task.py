"""What a task is: the points in which classification, tagging, questions and embedding differ."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from fmjax.data.tasks import Table, leave_out, overlap, stratified_split
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.pictures import Shown
from fmjax.recipes.tasks.predict import Predict
from fmjax.recipes.tasks.settings import Examples, TaskOptimization

Feature = Mapping[str, Any]
Metrics = dict[str, float]
Interval = tuple[float, float]

# Figures that are shown while training, where a task has them.
HEADLINE = (
    "accuracy",
    "macro_f1",
    "matthews_correlation",
    "precision",
    "recall",
    "f1",
    "micro_f1",
    "subset_accuracy",
    "exact_match",
    "spearman",
    "pearson",
    "rmse",
    "mrr",
    "accuracy@1",
)

Finish = Callable[[Sequence[Any]], list[dict[str, Any]]]
"""Picked outputs, a row for each feature → the input's rows with their answers."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a model reads text.

    Attributes:
      tokenizer: its own.
      max_length: tokens of a row at most.
      stride: tokens that neighbouring windows of a long text share.
      token_types: whether it tells the texts of a pair apart.
    """

    tokenizer: Any
    max_length: int
    stride: int
    token_types: bool

    @classmethod
    def of(
        cls, tokenizer: Any, config: Any, max_length: int, stride: int, virtual_tokens: int = 0
    ) -> Self:
        """Within what the model's positions allow, beside virtual tokens."""
        typed = getattr(config, "type_vocab_size", 0) > 1
        limit = (config.position_limit or max_length + virtual_tokens) - virtual_tokens
        return cls(tokenizer, min(max_length, limit), stride, typed)

    @property
    def padding(self) -> dict[str, int]:
        """Arguments of the batches."""
        return {"pad_id": self.tokenizer.pad_token_id or 0, "max_length": self.max_length}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Examples as a model takes them.

    Attributes:
      examples: the task's own reading of them, which answers and figures refer to.
      features: token ids and labels, see `fmjax.data.tasks.task_batches`; a long example may have
        several.
      note: what a reader of the run must know of them: how many were cut or left out.
    """

    examples: Any
    features: Any
    note: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """How good the answers are.

    Attributes:
      metrics: figures by name.
      intervals: 95 % bootstrap intervals of some of them.
      pictures: of the answers.
    """

    metrics: Metrics
    intervals: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    pictures: Sequence[Shown] = ()


class Task(abc.ABC):
    """A task with its labels.

    Class attributes:
      name: on the command line.
      head: of the model's config; None for the bare model.
    """

    name: ClassVar[str]
    head: ClassVar[str | None]

    @classmethod
    def of_config(cls, config: Any) -> Self:
        """The task, with its labels, of a fine-tuned model."""
        raise TypeError(f"a model does not say that its task was {cls.name}")

    @classmethod
    @abc.abstractmethod
    def read(cls, settings: FinetuneTask) -> tuple[Self, Any, Any, list[str]]:
        """Reads the files: (task, examples to train on, examples to measure on, notes).

        Raises:
          DataError: a file that cannot be used; names file, line and remedy.
        """

    def load(self, name: str, files: Examples) -> Any:
        """One file of examples with this task's labels.

        Args:
          name: of the file.
          files: names of its columns.

        Raises:
          DataError: a file that cannot be used; names file, line and remedy.
        """
        raise TypeError(f"{self.name} does not say what its labels are")

    @abc.abstractmethod
    def prepare(self, examples: Any, reading: Reading) -> Prepared:
        """Examples with labels as features."""

    @property
    @abc.abstractmethod
    def metric(self) -> str:
        """What the best checkpoint is chosen by, unless the settings say otherwise."""

    def headline(self, metrics: Metrics, metric: str) -> Metrics:
        """The few that are shown while training, and the one that the best is chosen by."""
        return {k: v for k, v in metrics.items() if k in ("loss", metric, *HEADLINE)}

    def mode(self, metric: str) -> str:
        """Whether more of a metric is better ("max") or less ("min")."""
        return "min" if metric in ("loss", "rmse", "mae", "mean_absolute_error") else "max"

    @abc.abstractmethod
    def override(self) -> dict[str, Any]:
        """Fields of the model's config: its head and labels."""

    @abc.abstractmethod
    def objective(self, optimization: TaskOptimization, examples: Any) -> Any:
        """What is minimised on these examples to train on."""

    @abc.abstractmethod
    def pick(self, output: Any, batch: Mapping[str, Any]) -> Any:
        """What answers are made of: arrays [B, …] of a model's output."""

    @abc.abstractmethod
    def measure(self, prepared: Prepared, outputs: Sequence[Any], thorough: bool) -> Measured:
        """Figures over examples with labels.

        Args:
          prepared: the examples.
          outputs: what `pick` gave, a row for each feature.
          thorough: with intervals and pictures, at the end of a run.
        """

    def ask(self, table: Table, reading: Reading, settings: Predict) -> tuple[Any, Finish]:
        """Rows without labels as features, and how outputs become answers.

        Raises:
          DataError: a column that is missing, or a row without text; names file and line.
        """
        raise TypeError(f"{self.name} has no answers to print")


def read_split(
    settings: FinetuneTask,
    read: Callable[[str, Any], Any],
    labels: Callable[[Any], Sequence[Any]],
    split: Callable[[Any, float, int], tuple[Sequence[int], Sequence[int]]] | None = None,
) -> tuple[Any, Any, list[str]]:
    """Examples to train on and to measure on, from one file or two.

    Args:
      settings: which files.
      read: (file, the training examples or None) → examples, with `select`, `keys`, `report`.
      labels: examples → what a split keeps in proportion.
      split: (examples, fraction, seed) → indices of both, in place of a stratified one.

    Returns:
      (train, valid, notes).
    """
    files, seed = settings.examples, settings.optimization.seed
    train = read(files.train, None)
    notes = [f"{files.train}: {train.report}"]
    if files.valid:
        valid = read(files.valid, train)
        notes.append(f"{files.valid}: {valid.report}")
    else:
        if split is None:
            ours, theirs = stratified_split(labels(train), files.valid_fraction, seed)
        else:
            ours, theirs = split(train, files.valid_fraction, seed)
        train, valid = train.select(ours), train.select(theirs)
    found = overlap(train.keys(), valid.keys(), labels(train))
    if found.test or found.conflicting:
        notes.append(f"note: {found}")
    if found.train and files.remove_overlap:
        train = leave_out(train, {"also among those to measure on": found.train})
    notes.append(f"{len(train):,} examples to train on, {len(valid):,} to measure on")
    return train, valid, notes
