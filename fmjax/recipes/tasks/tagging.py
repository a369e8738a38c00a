"""Tagging of words: named entities, parts of speech."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from fmjax import evals
from fmjax.core.errors import ConfigError
from fmjax.data.tasks import (
    Table,
    Tagging,
    entity_spans,
    read_tagging,
    split_words,
    tagging_features,
    word_tags,
)
from fmjax.data.tasks.schemes import scheme_of_names
from fmjax.evals.tagging import token_accuracy
from fmjax.objectives import TokenClassification
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.inputs import beside
from fmjax.recipes.tasks.pictures import confusion_picture, scores_picture
from fmjax.recipes.tasks.predict import Predict
from fmjax.recipes.tasks.settings import Examples, TaskOptimization
from fmjax.recipes.tasks.task import Finish, Measured, Prepared, Reading, Task, read_split


def _columns(files: Examples) -> dict[str, Any]:
    """Where words and tags stand, where the settings say it: a field's name or a number."""
    given = {"word_column": files.text_column, "tag_column": files.label_column}
    return {
        name: int(value) if value.removeprefix("-").isdecimal() else value
        for name, value in given.items()
        if value
    }


@dataclasses.dataclass(frozen=True)
class TaggingTask(Task):
    """Attributes: names of the tags, and how they spell entities (BIO, IOBES or plain)."""

    names: tuple[str, ...]
    scheme: str

    name: ClassVar[str] = "tagging"
    head: ClassVar[str] = "token-classification"

    @classmethod
    def of_config(cls, config: Any) -> Self:
        return cls(config.id2label, scheme_of_names(config.id2label))

    @classmethod
    def read(cls, settings: FinetuneTask) -> tuple[Self, Any, Any, list[str]]:
        scheme = settings.examples.scheme or None

        def read(name: str, train: Tagging | None) -> Tagging:
            columns = _columns(settings.examples)
            return read_tagging(name, names=train and train.names, scheme=scheme, **columns)

        def last_label(data: Tagging) -> list[int]:
            """What a split keeps in proportion: which label of a sentence is last in the set."""
            return [max(tags) for tags in data.tags]

        train, valid, notes = read_split(settings, read, last_label)
        notes += dict.fromkeys((*train.notes, *valid.notes))
        return cls(train.names, train.scheme), train, valid, notes

    def load(self, name: str, files: Examples) -> Tagging:
        columns = _columns(files)
        return read_tagging(name, names=self.names, scheme=files.scheme or None, **columns)

    def prepare(self, examples: Tagging, reading: Reading) -> Prepared:
        made = tagging_features(examples, reading.tokenizer, reading.max_length, _stride(reading))
        counts = ", ".join(f"{n:,} {what}" for what, n in made.counts.items() if n)
        words = sum(made.lengths)
        note = f"{len(examples):,} sentences of {words:,} words" + (f"; {counts}" if counts else "")
        return Prepared((examples, made), made.features, note)

    @property
    def metric(self) -> str:
        return "accuracy" if self.scheme == "plain" else "f1"

    def override(self) -> dict[str, Any]:
        return {"head": self.head, "id2label": list(self.names), "problem_type": None}

    def objective(self, optimization: TaskOptimization, examples: Any) -> Any:
        if optimization.balance:
            raise ConfigError("--balance is for classification; leave it out")
        return TokenClassification(label_smoothing=optimization.label_smoothing)

    def pick(self, output: Any, batch: Mapping[str, Any]) -> Any:
        return output.logits

    def measure(self, prepared: Prepared, outputs: Sequence[Any], thorough: bool) -> Measured:
        examples, features = prepared.examples
        found = word_tags(features, outputs).tags
        said = [[self.names[tag] for tag in tags] for tags in found]
        true = [examples.tag_names(i) for i in range(len(examples))]
        if self.scheme == "plain":
            metrics = {"accuracy": token_accuracy(true, said)}
            if not thorough:
                return Measured(metrics)
            flat = [np.concatenate(tags) for tags in (examples.tags, found)]
            matrix = evals.confusion_matrix(*flat, len(self.names))
            right = [
                [np.sum(np.equal(a, b)), len(a)] for a, b in zip(examples.tags, found, strict=True)
            ]
            interval = evals.sums_interval(lambda sums: sums[:, 0] / sums[:, 1], right)
            pictures = [confusion_picture(matrix, self.names)]
            return Measured(metrics, {"accuracy": interval}, pictures)
        metrics = evals.tagging_metrics(true, said)
        if not thorough:
            return Measured(metrics)
        intervals = evals.tagging_intervals(true, said)
        kinds = [name.removeprefix("f1/") for name in metrics if name.startswith("f1/")]
        f1 = {kind: metrics[f"f1/{kind}"] for kind in kinds}
        ranges = {kind: intervals[f"f1/{kind}"] for kind in kinds}
        return Measured(metrics, intervals, [scores_picture(f1, ranges, "F1 of each entity")])

    def ask(self, table: Table, reading: Reading, settings: Predict) -> tuple[Any, Finish]:
        table.require(settings.text_column, "--text-column")
        texts = table.texts(settings.text_column)
        words, offsets = zip(*map(split_words, texts), strict=True)
        made = tagging_features(words, reading.tokenizer, reading.max_length, _stride(reading))

        def finish(outputs: Sequence[Any]) -> list[dict[str, Any]]:
            found = word_tags(made, outputs)
            rows = []
            for i, row in enumerate(table.rows):
                tags = [self.names[tag] for tag in found.tags[i]]
                spans = entity_spans(texts[i], offsets[i], tags, found.scores[i], self.scheme)
                rows.append(beside(row, {"entities": spans}))
            return rows

        return made.features, finish


def _stride(reading: Reading) -> int:
    """At most a quarter of a window, which most sentences to tag do not fill."""
    return min(reading.stride, reading.max_length // 4)
