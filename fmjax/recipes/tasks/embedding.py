"""Sentence embeddings: texts that belong together lie close."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from fmjax import evals
from fmjax.core.errors import ConfigError
from fmjax.data.tasks import Pairs, pair_features, read_pairs
from fmjax.evals.classification import spearman
from fmjax.evals.embeddings import cosines
from fmjax.hub import read_config
from fmjax.models.registry import get_family
from fmjax.nn.pooling import sentence_embeddings
from fmjax.objectives import SentenceEmbedding
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.pictures import scores_picture
from fmjax.recipes.tasks.sentences import SentenceModel
from fmjax.recipes.tasks.settings import TaskOptimization
from fmjax.recipes.tasks.task import Measured, Prepared, Reading, Task, read_split


@dataclasses.dataclass(frozen=True)
class EmbeddingTask(Task):
    """Attributes: whether pairs have scores (else they belong together), and the pooling."""

    scored: bool
    pooling: str

    name: ClassVar[str] = "embedding"
    head: ClassVar[None] = None

    @classmethod
    def read(cls, settings: FinetuneTask) -> tuple[Self, Any, Any, list[str]]:
        files = settings.examples
        config = get_family(read_config(settings.model)["model_type"]).config
        pooling = SentenceModel.of(settings.model, config, settings.pooling).pooling

        def read(name: str, train: Pairs | None) -> Pairs:
            return read_pairs(
                name,
                files.text_column or "anchor",
                files.pair_column or "positive",
                files.negative_column or None,
                files.label_column or None,
                score_scale=train and train.score_scale,
            )

        train, valid, notes = read_split(
            settings, read, lambda data: data.scores or [0] * len(data)
        )
        if (train.scores is None) != (valid.scores is None):
            raise ConfigError(f"only one of {files.train} and {files.valid} has scores")
        return cls(train.scores is not None, pooling), train, valid, notes

    def prepare(self, examples: Pairs, reading: Reading) -> Prepared:
        features = pair_features(examples, reading.tokenizer, reading.max_length)
        return Prepared(examples, features, str(features))

    @property
    def metric(self) -> str:
        return "spearman" if self.scored else "mrr"

    def override(self) -> dict[str, Any]:
        return {"head": None}

    def objective(self, optimization: TaskOptimization, examples: Any) -> Any:
        if optimization.balance or optimization.label_smoothing:
            raise ConfigError("--balance and --label-smoothing are for classes; leave them out")
        if optimization.accumulate > 1 and not self.scored:
            raise ConfigError(
                f"--accumulate {optimization.accumulate} would change the loss, in which all texts "
                "of a batch are compared; leave it out, or give pairs with scores"
            )
        return SentenceEmbedding(
            optimization.temperature, pooling=self.pooling, regression=self.scored
        )

    def pick(self, output: Any, batch: Mapping[str, Any]) -> Any:
        B, K, T = batch["input_ids"].shape
        mask = batch["attention_mask"].reshape(B * K, T)
        vectors = sentence_embeddings(output.last_hidden_state, mask, self.pooling)
        return vectors.reshape(B, K, -1)

    def measure(self, prepared: Prepared, outputs: Sequence[Any], thorough: bool) -> Measured:
        examples, vectors = prepared.examples, np.stack(outputs)
        anchors, positives = vectors[:, 0], vectors[:, 1]
        if self.scored:
            metrics = evals.similarity_metrics(anchors, positives, examples.scores)
            if not thorough:
                return Measured(metrics)
            pair = cosines(anchors, positives), np.asarray(examples.scores)
            intervals = {"spearman": evals.interval(spearman, *pair)}
        else:
            # Equal texts are one candidate, which is right for all anchors that it belongs to.
            _, first, numbers = np.unique(
                examples.positives, return_index=True, return_inverse=True
            )
            found = (anchors, positives[first], numbers)
            metrics = evals.retrieval_metrics(*found)
            if not thorough:
                return Measured(metrics)
            ranks = evals.positive_ranks(*found)
            intervals = {
                "mrr": evals.mean_interval(1 / ranks),
                "accuracy@1": evals.mean_interval(ranks == 1),
            }
        figures = {name: metrics[name] for name in intervals}
        return Measured(metrics, intervals, [scores_picture(figures, intervals, "Embeddings")])
