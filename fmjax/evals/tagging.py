"""Metrics of tagging: entities as CoNLL's evaluation script and seqeval count them.

An entity is right if its type and both ends are. Tags may be BIO, IOB, IOBES or BILOU; a sequence
that breaks their rules is read as those two read it: "I-PER" after "O" begins an entity.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.tasks.schemes import Entity, entities, split_tag
from fmjax.evals.arrays import RATES, check_lengths, rates, rates_by_name

Tags = Sequence[Sequence[str]]


def entity_counts(labels: Tags, predictions: Tags) -> tuple[list[str], np.ndarray]:
    """(types, i64[sentences, types, 3]) with the numbers of right, predicted and actual entities.

    Their sums over any choice of sentences give its precision, recall and F1.
    """
    check_lengths(labels=labels, predictions=predictions)
    rows: list[tuple[Counter[str], ...]] = []
    for number, (truth, chosen) in enumerate(zip(labels, predictions, strict=True)):
        if len(truth) != len(chosen):
            raise DataError(
                f"metrics: sentence {number} has {len(truth)} labels and {len(chosen)} predictions"
            )
        actual, predicted = _entities(truth), _entities(chosen)
        groups = (set(actual) & set(predicted), predicted, actual)
        rows.append(tuple(Counter(entity.type for entity in group) for group in groups))
    types = sorted({kind for row in rows for group in row for kind in group})
    index = {kind: i for i, kind in enumerate(types)}
    counts = np.zeros((len(rows), len(types), 3), np.int64)
    for number, row in enumerate(rows):
        for column, group in enumerate(row):
            for kind, n in group.items():
                counts[number, index[kind], column] = n
    return types, counts


def _entities(tags: Sequence[str]) -> list[Entity]:
    for tag in tags:
        if not split_tag(tag)[0]:
            raise DataError(
                f"entities: tag {tag!r} is neither O nor B-, I-, E-, S-, L- or U- and a type; "
                "measure tags of single tokens by their accuracy"
            )
    return entities(tags)


def tagging_metrics(labels: Tags, predictions: Tags) -> dict[str, float]:
    """Metrics of entities over sentences of tags such as "B-PER", one tag a word.

    Returns:
      accuracy of single tags; precision, recall and f1 over all entities (micro); macro_f1 over
      the types that occur; precision/TYPE, recall/TYPE, f1/TYPE and support/TYPE. All are
      fractions, and 0 where there is nothing to divide by.

    Raises:
      DataError: no sentence, lengths that differ, a tag without a prefix.
    """
    types, counts = entity_counts(labels, predictions)
    by_type = counts.sum(0).T  # [3, types]
    metrics = {"accuracy": token_accuracy(labels, predictions)}
    for what, value in zip(RATES, rates(*by_type.sum(-1)), strict=True):
        metrics[what] = float(value)
    metrics["macro_f1"] = float(rates(*by_type)[2].mean()) if types else 0.0
    return metrics | rates_by_name(types, *by_type)


def token_accuracy(labels: Tags, predictions: Tags) -> float:
    """Share of the tags that are right; of no tag, 0."""
    pairs = [(a, b) for t, p in zip(labels, predictions, strict=True) for a, b in
             zip(t, p, strict=True)]  # fmt: skip
    return sum(a == b for a, b in pairs) / max(len(pairs), 1)
