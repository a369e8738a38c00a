"""Texts, or pairs of texts, with classes or numbers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fmjax.core.errors import DataError
from fmjax.data.tasks.labels import MULTI, REGRESSION, SINGLE, read_classes, read_numbers
from fmjax.data.tasks.tables import Origin, Report, read_table


@dataclasses.dataclass(frozen=True)
class Classification:
    """Texts and what is to be told of them.

    Attributes:
      texts: n texts.
      pairs: the second text of each, or None.
      labels: of each text, a class (single label), N zeros and ones (multi-label), or a number or
        N numbers (regression).
      names: of the N classes; of the predicted columns in regression.
      problem_type: "single_label_classification", "multi_label_classification" or "regression".
      origin: where each text is.
      report: rows read and left out.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[list[int]] | list[float] | list[list[float]]
    names: tuple[str, ...]
    problem_type: str
    origin: Origin
    report: Report

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, i: int) -> str:
        """Such as "train.tsv, line 12"."""
        return self.origin.where(i)

    def keys(self) -> list[tuple[str, ...]]:
        """The texts of each example, by which duplicates are told."""
        return list(zip(*[c for c in (self.texts, self.pairs) if c is not None], strict=True))

    def select(self, indices: Sequence[int]) -> "Classification":
        """These examples, in this order, with a report of their own; see `leave_out`."""
        return dataclasses.replace(
            self,
            texts=[self.texts[i] for i in indices],
            pairs=None if self.pairs is None else [self.pairs[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            origin=self.origin.select(indices),
            report=Report(len(indices)),
        )


def read_classification(
    name: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    pair_column: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
) -> Classification:
    """Texts with labels, from whatever `read_table` reads.

    A label is a string, an integer or a boolean; its name is the string without surrounding
    blanks, the decimal digits, or "true" and "false". TFDS's ClassLabel gives the names behind
    its integers.

    - Single label: one a row.
    - Multi-label: a JSON list, or a string with "|" between labels. Empty means that no class
      applies.
    - Regression: a finite number, or a JSON list of as many in every row; called as the column
      is, with _0, _1, … where there are several.

    Args:
      name: see `read_table`.
      text_column, label_column: where they are.
      pair_column: where the second text is, if texts come in pairs.
      labels: the names of the classes in order, such as `names` of the training data for the
        validation data. Default: those that occur, numbers by value and other names as people
        sort them ("b2" before "b10"); or all of a ClassLabel. In regression, names of the
        numbers.
      problem_type: default is single label.

    Raises:
      DataError: as `read_table`; an empty text or label; a label that is not in `labels`, or not
        one of the above; a number that is not finite; without `labels`, only one class, or labels
        that look like numbers or texts rather than classes.
    """
    if problem_type not in (None, SINGLE, MULTI, REGRESSION):
        raise DataError(
            f'problem_type="{problem_type}" is unknown; use "{SINGLE}", "{MULTI}" or "{REGRESSION}"'
        )
    problem_type = problem_type or SINGLE
    columns = {text_column: "text_column", label_column: "label_column"}
    table = read_table(name, columns | ({pair_column: "pair_column"} if pair_column else {}))
    texts = table.texts(text_column)
    pairs = table.texts(pair_column) if pair_column else None
    targets: list
    if problem_type == REGRESSION:
        numbers, names = read_numbers(table, label_column, labels)
        targets = numbers if len(names) > 1 else [row[0] for row in numbers]
    else:
        classes, names = read_classes(table, label_column, labels, multi=problem_type == MULTI)
        targets = [row[0] for row in classes] if problem_type == SINGLE else [
            [int(k in row) for k in range(len(names))] for row in classes
        ]  # fmt: skip
    return Classification(texts, pairs, targets, names, problem_type, table.origin, table.report)
