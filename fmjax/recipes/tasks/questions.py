"""Extractive question answering."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from fmjax import evals
from fmjax.core.errors import ConfigError
from fmjax.data.tasks import (
    Questions,
    Table,
    best_spans,
    question_features,
    read_questions,
    stratified_split,
)
from fmjax.data.tasks.answer_spans import Answer, QuestionFeatures
from fmjax.objectives import QuestionAnswering
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.inputs import beside
from fmjax.recipes.tasks.pictures import scores_picture
from fmjax.recipes.tasks.predict import Predict
from fmjax.recipes.tasks.settings import Examples, TaskOptimization
from fmjax.recipes.tasks.task import Finish, Measured, Prepared, Reading, Task, read_split


@dataclasses.dataclass(frozen=True)
class QuestionsTask(Task):
    """Attributes: whether some questions have no answer in their context (SQuAD 2.0)."""

    unanswerable: bool = False

    name: ClassVar[str] = "qa"
    head: ClassVar[str] = "question-answering"

    @classmethod
    def of_config(cls, config: Any) -> Self:
        return cls()

    @classmethod
    def read(cls, settings: FinetuneTask) -> tuple[Self, Any, Any, list[str]]:
        train, valid, notes = read_split(
            settings,
            lambda name, train: read_questions(name),
            lambda data: [bool(answers) for answers in data.answers],
            _split_contexts,
        )
        return cls(train.has_unanswerable), train, valid, notes

    def load(self, name: str, files: Examples) -> Questions:
        return read_questions(name)

    def prepare(self, examples: Questions, reading: Reading) -> Prepared:
        made = _features(examples, reading, with_answers=True)
        counts = ", ".join(f"{n:,} {what}" for what, n in made.counts.items())
        return Prepared((examples, made), made.features, f"{len(examples):,} questions; {counts}")

    @property
    def metric(self) -> str:
        return "f1"

    def override(self) -> dict[str, Any]:
        # Two logits: where the answer starts and where it ends.
        return {"head": self.head, "id2label": ["LABEL_0", "LABEL_1"], "problem_type": None}

    def objective(self, optimization: TaskOptimization, examples: Any) -> Any:
        if optimization.balance or optimization.label_smoothing:
            raise ConfigError("--balance and --label-smoothing are for classes; leave them out")
        return QuestionAnswering()

    def pick(self, output: Any, batch: Mapping[str, Any]) -> Any:
        return output.start_logits, output.end_logits

    def measure(self, prepared: Prepared, outputs: Sequence[Any], thorough: bool) -> Measured:
        examples, features = prepared.examples
        # SQuAD 2.0's rule where a question may have no answer, in training or here.
        threshold = 0.0 if self.unanswerable or examples.has_unanswerable else None
        said = [answer.text for answer in _answers(examples, features, outputs, threshold)]
        true = [[text for text, _ in answers] for answers in examples.answers]
        metrics = evals.question_metrics(said, true)
        if not thorough:
            return Measured(metrics)
        scores = evals.question_scores(said, true)
        names = ("exact_match", "f1")
        intervals = {n: evals.mean_interval(scores[:, i]) for i, n in enumerate(names)}
        figures = {name: metrics[name] for name in names}
        return Measured(metrics, intervals, [scores_picture(figures, intervals, "Answers")])

    def ask(self, table: Table, reading: Reading, settings: Predict) -> tuple[Any, Finish]:
        for column in ("question", "context"):
            table.require(column)
        rows = range(len(table))
        examples = Questions(
            ids=[str(i) for i in rows],
            questions=table.texts("question"),
            contexts=table.texts("context"),
            answers=[[] for _ in rows],
            places=[table.where(i) for i in rows],
            report=table.report,
        )
        made = _features(examples, reading, with_answers=False)

        def finish(outputs: Sequence[Any]) -> list[dict[str, Any]]:
            found = _answers(examples, made, outputs, settings.null_threshold)
            return [
                beside(
                    row,
                    {
                        "answer": answer.text,
                        "score": answer.score,
                        "start": answer.start,
                        "end": answer.end,
                    },
                )
                for row, answer in zip(table.rows, found, strict=True)
            ]

        return made.features, finish


def _features(examples: Questions, reading: Reading, with_answers: bool) -> QuestionFeatures:
    return question_features(
        examples,
        reading.tokenizer,
        reading.max_length,
        min(reading.stride, reading.max_length // 4),
        with_answers=with_answers,
        token_types=reading.token_types,
    )


def _answers(
    examples: Questions, features: QuestionFeatures, outputs: Sequence[Any], null: float | None
) -> list[Answer]:
    starts, ends = zip(*outputs, strict=True)
    return best_spans(examples, features, starts, ends, null_threshold=null)


def _split_contexts(examples: Questions, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Questions on one context stay together: whoever has seen it knows its answers."""
    contexts = list(dict.fromkeys(examples.contexts))
    _, held_out = stratified_split([0] * len(contexts), fraction, seed)
    theirs = {contexts[i] for i in held_out}
    inside = np.array([context in theirs for context in examples.contexts])
    return np.flatnonzero(~inside).tolist(), np.flatnonzero(inside).tolist()
