"""Classification of texts and pairs of texts: one label, several labels, or a number."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from fmjax import evals
from fmjax.core.errors import ConfigError
from fmjax.data.tasks import (
    Classification,
    Table,
    balanced_weights,
    classification_features,
    read_classification,
    text_features,
)
from fmjax.evals.classification import spearman
from fmjax.objectives import SequenceClassification
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.inputs import beside
from fmjax.recipes.tasks.pictures import confusion_picture, scores_picture
from fmjax.recipes.tasks.predict import Predict
from fmjax.recipes.tasks.settings import Examples, TaskOptimization
from fmjax.recipes.tasks.task import Finish, Measured, Prepared, Reading, Task, read_split

PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


@dataclasses.dataclass(frozen=True)
class ClassificationTask(Task):
    """Attributes: names of the labels, and what a label is (`PROBLEMS`' values)."""

    names: tuple[str, ...]
    problem_type: str

    name: ClassVar[str] = "classification"
    head: ClassVar[str] = "sequence-classification"

    @classmethod
    def of_config(cls, config: Any) -> Self:
        single = "single_label_classification" if config.num_labels > 1 else "regression"
        return cls(config.id2label, config.problem_type or single)

    @classmethod
    def read(cls, settings: FinetuneTask) -> tuple[Self, Any, Any, list[str]]:
        problem = PROBLEMS[settings.examples.problem]

        def read(name: str, train: Classification | None) -> Classification:
            return _read(name, settings.examples, train and train.names, problem)

        train, valid, notes = read_split(settings, read, lambda data: data.labels)
        if problem == "single_label_classification":
            counts = np.bincount(train.labels, minlength=len(train.names))
            shares = (f"{n} {c:,}" for n, c in zip(train.names, counts, strict=True))
            notes.append("to train on: " + ", ".join(shares))
        return cls(train.names, problem), train, valid, notes

    def load(self, name: str, files: Examples) -> Classification:
        return _read(name, files, self.names, self.problem_type)

    def prepare(self, examples: Classification, reading: Reading) -> Prepared:
        features = classification_features(
            examples, reading.tokenizer, reading.max_length, token_types=reading.token_types
        )
        return Prepared(examples, features, str(features))

    @property
    def metric(self) -> str:
        by_problem = {"single": "accuracy", "multi": "micro_f1", "regression": "spearman"}
        return next(by_problem[k] for k, v in PROBLEMS.items() if v == self.problem_type)

    def override(self) -> dict[str, Any]:
        return {
            "head": self.head,
            "id2label": list(self.names),
            "problem_type": self.problem_type,
        }

    def objective(self, optimization: TaskOptimization, examples: Classification) -> Any:
        weights = None
        if optimization.balance:
            if self.problem_type != "single_label_classification":
                raise ConfigError("--balance is for one label each; leave it out")
            weights = tuple(balanced_weights(examples.labels, len(self.names)))
        return SequenceClassification(self.problem_type, weights, optimization.label_smoothing)

    def pick(self, output: Any, batch: Mapping[str, Any]) -> Any:
        return output.logits

    def measure(self, prepared: Prepared, outputs: Sequence[Any], thorough: bool) -> Measured:
        labels, found = prepared.examples.labels, np.stack(outputs).astype(np.float64)
        if self.problem_type == "regression":
            metrics = evals.regression_metrics(labels, found)
            if not thorough:
                return Measured(metrics)
            intervals = {"spearman": evals.interval(spearman, np.ravel(labels), found.ravel())}
            figures = {"spearman": metrics["spearman"], "pearson": metrics["pearson"]}
            return Measured(metrics, intervals, [scores_picture(figures, intervals, "Correlation")])
        if self.problem_type == "multi_label_classification":
            metrics = evals.multi_label_metrics(labels, found, self.names)
            if not thorough:
                return Measured(metrics)
            right = np.all((found > 0) == np.asarray(labels, bool), -1)
            intervals = {"subset_accuracy": evals.mean_interval(right)}
            f1 = {name: metrics[f"f1/{name}"] for name in self.names}
            return Measured(metrics, intervals, [scores_picture(f1, {}, "F1 of each label")])
        metrics = evals.classification_metrics(labels, found, self.names)
        if not thorough:
            return Measured(metrics)
        matrix = evals.confusion_matrix(labels, found, len(self.names))
        return Measured(
            metrics,
            evals.classification_intervals(labels, found, self.names),
            [confusion_picture(matrix, self.names)],
        )

    def ask(self, table: Table, reading: Reading, settings: Predict) -> tuple[Any, Finish]:
        table.require(settings.text_column, "--text-column")
        pairs = None
        if settings.pair_column:
            table.require(settings.pair_column, "--pair-column")
            pairs = table.texts(settings.pair_column)
        features = text_features(
            table.texts(settings.text_column),
            reading.tokenizer,
            reading.max_length,
            pairs,
            token_types=reading.token_types,
            names=[table.where(i) for i in range(len(table))],
        )

        def finish(outputs: Sequence[Any]) -> list[dict[str, Any]]:
            return [
                beside(row, self._answer(np.asarray(x, np.float64), settings.threshold))
                for row, x in zip(table.rows, outputs, strict=True)
            ]

        return features, finish

    def _answer(self, logits: np.ndarray, threshold: float) -> dict[str, Any]:
        if self.problem_type == "regression":
            scores = dict(zip(self.names, map(float, logits), strict=True))
            return {"score": float(logits[0])} if len(scores) == 1 else {"scores": scores}
        if self.problem_type == "multi_label_classification":
            probabilities = 1 / (1 + np.exp(-logits))
            scores = dict(zip(self.names, map(float, probabilities), strict=True))
            return {"label": [n for n, p in scores.items() if p >= threshold], "scores": scores}
        exps = np.exp(logits - logits.max())
        scores = dict(zip(self.names, map(float, exps / exps.sum()), strict=True))
        best = max(scores, key=scores.__getitem__)
        return {"label": best, "score": scores[best], "scores": scores}


def _read(name: str, files: Examples, labels: Sequence[str] | None, problem: str) -> Classification:
    return read_classification(
        name,
        files.text_column or "text",
        files.label_column or "label",
        files.pair_column or None,
        labels=labels,
        problem_type=problem,
    )
