"""Pairs of texts that mean the same, with texts that do not, or with a score of likeness."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fmjax.core.errors import DataError
from fmjax.data.tasks.labels import read_numbers
from fmjax.data.tasks.tables import Origin, Report, Table, read_table

# Columns that say of themselves what they are, tried where the table lacks the default ones.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("query", "positive"),
    ("question", "answer"),
    ("text", "pair"),
)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Texts that belong together.

    Attributes:
      anchors, positives: n texts each.
      negatives: hard negatives of each anchor, the same number for all; or None.
      scores: likeness of anchor and positive, 0 … 1; or None where every pair belongs together.
      score_scale: what the scores of the file were divided by; pass it for the validation data.
      origin: where each pair is.
      report: rows read and left out.
    """

    anchors: list[str]
    positives: list[str]
    negatives: list[list[str]] | None
    scores: list[float] | None
    score_scale: float | None
    origin: Origin
    report: Report

    def __len__(self) -> int:
        return len(self.anchors)

    def where(self, i: int) -> str:
        """Such as "train.tsv, line 12"."""
        return self.origin.where(i)

    def keys(self) -> list[tuple[str, str]]:
        """Anchor and positive of each pair, by which duplicates are told."""
        return list(zip(self.anchors, self.positives, strict=True))

    def select(self, indices: Sequence[int]) -> "Pairs":
        """These pairs, in this order, with a report of their own; see `leave_out`."""
        chosen = {
            field: [column[i] for i in indices]
            for field in ("anchors", "positives", "negatives", "scores")
            if (column := getattr(self, field)) is not None
        }
        return dataclasses.replace(
            self, origin=self.origin.select(indices), report=Report(len(indices)), **chosen
        )


def read_pairs(
    name: str | Path,
    anchor_column: str = "anchor",
    positive_column: str = "positive",
    negative_column: str | Sequence[str] | None = None,
    score_column: str | None = None,
    *,
    score_scale: float | None = None,
) -> Pairs:
    """Pairs for sentence embeddings, from whatever `read_table` reads.

    A table without the columns "anchor" and "positive" (and no others asked for) may have one of
    these in their place: sentence1 and sentence2, query and positive, question and answer, text and
    pair; if it has several of them, they must be named.

    Args:
      name: see `read_table`.
      anchor_column, positive_column: where the two texts are.
      negative_column: where hard negatives are: a column, or several; in JSON lines a list of
        texts, too, as many in every row. Default is the column "negative", if there is one and no
        score.
      score_column: where likeness is, a number from 0 up. Default is the column "score", if there
        is one beside sentence1 and sentence2 (as in STS-B).
      score_scale: what scores are divided by, so that they end up in 0 … 1, such as 5 for STS-B.
        Default: the largest score of this file, or 1 if none is larger than 1. Validation data
        should get the `score_scale` of the training data.

    Raises:
      DataError: as `read_table`; an empty text; a score that is negative, not finite or above
        `score_scale`; rows with unlike numbers of negatives; negatives and scores at once. Names
        file, line and remedy.
    """
    table = read_table(name)
    if (anchor_column, positive_column) == ("anchor", "positive"):
        anchor_column, positive_column = _columns(table)
    table.require(anchor_column, "anchor_column")
    table.require(positive_column, "positive_column")
    if score_column is None and anchor_column == "sentence1" and "score" in table.columns:
        score_column = "score"
    if negative_column is None and score_column is None and "negative" in table.columns:
        negative_column = "negative"
    if negative_column is not None and score_column is not None:
        raise DataError(
            "negatives and scores do not go together: a pair has a score, or belongs together and "
            "has negatives; name one of the two columns"
        )
    anchors, positives = table.texts(anchor_column), table.texts(positive_column)
    negatives, scores = None, None
    if negative_column is not None:
        columns = [negative_column] if isinstance(negative_column, str) else list(negative_column)
        negatives = _negatives(table, columns)
    if score_column is not None:
        scores, score_scale = _scores(table, score_column, score_scale)
    return Pairs(
        anchors, positives, negatives, scores, score_scale if scores else None, table.origin,
        table.report,
    )  # fmt: skip


def _columns(table: Table) -> tuple[str, str]:
    if "anchor" in table.columns and "positive" in table.columns:
        return "anchor", "positive"
    found = [pair for pair in _PAIRS if set(pair) <= set(table.columns)]
    if len(found) == 1:
        return found[0]
    what = "several pairs of texts" if found else "no columns anchor and positive"
    raise DataError(
        f"{table.origin.name}: {what}; it has {', '.join(table.columns)}; name the two with "
        "anchor_column and positive_column (--text-column and --pair-column)"
    )


def _negatives(table: Table, columns: Sequence[str]) -> list[list[str]]:
    for column in columns:
        table.require(column)
    rows = []
    for i in range(len(table)):
        row: list[str] = []
        for column in columns:
            value = table.value(i, column)
            if isinstance(value, list):
                if not all(isinstance(text, str) and text.strip() for text in value):
                    raise DataError(
                        f'{table.where(i)}: column "{column}" has a negative that is empty or not '
                        "text; correct it or remove it from the list"
                    )
                row += value
            else:
                row.append(table.text(i, column))
        rows.append(row)
        if len(row) != len(rows[0]) or not row:
            raise DataError(
                f"{table.where(i)}: {len(row)} negatives where the first row has {len(rows[0])}; "
                "give every row as many, at least one"
            )
    return rows


def _scores(table: Table, column: str, scale: float | None) -> tuple[list[float], float]:
    table.require(column)
    values = [row[0] for row in read_numbers(table, column, [column])[0]]
    if scale is None:
        scale = max(1.0, *values)
    for i, value in enumerate(values):
        if not 0 <= value <= scale:
            raise DataError(
                f'{table.where(i)}: the score {value:g} in column "{column}" is not within 0 … '
                f"{scale:g}; correct it, or shift scores to start at 0 and set score_scale"
            )
    return [value / scale for value in values], scale
