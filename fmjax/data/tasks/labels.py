"""A column of a table as classes or as numbers."""

import collections
import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.tasks.tables import Table

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
SEPARATOR = "|"  # between the labels of one text, in TSV and CSV
_MANY = 50  # different labels that are more likely numbers or texts than classes


def read_classes(
    table: Table, column: str, labels: Sequence[str] | None, *, multi: bool
) -> tuple[list[list[int]], tuple[str, ...]]:
    """The classes of each row, as indices, and their names; see `read_classification`."""
    found = []
    for i in range(len(table)):
        value = table.value(i, column)
        if multi:
            if isinstance(value, str):
                value = value.split(SEPARATOR) if value.strip() else []
            values = value if isinstance(value, list) else [value]
        else:
            values = [value]
        found.append(list(dict.fromkeys(_name(table, i, column, v) for v in values)))
    names = _names(table, column, found) if labels is None else _distinct(labels)
    index = {name: k for k, name in enumerate(names)}
    for i, row in enumerate(found):
        for name in row:
            if name not in index:
                raise _unknown(table, i, column, name, names)
    return [[index[name] for name in row] for row in found], names


def _name(table: Table, i: int, column: str, label: Any) -> str:
    known = table.class_names.get(column)
    if isinstance(label, bool):
        return "true" if label else "false"
    if known is not None and isinstance(label, int):
        if 0 <= label < len(known):
            return known[label]
        raise DataError(
            f'{table.where(i)}: "{column}" is {label}, which stands for no class; choose a split '
            "that has labels"
        )
    if isinstance(label, (int, float)):
        return str(label)
    if isinstance(label, str) and label.strip():
        return label.strip()
    if label is None or isinstance(label, str):
        raise DataError(
            f'{table.where(i)}: the label in column "{column}" is empty; fill it in or remove the '
            "row"
        )
    raise DataError(
        f'{table.where(i)}: the label in column "{column}" is a {type(label).__name__}; give a '
        f'string or an integer, or pass problem_type="{MULTI}" for lists of them'
    )


def _distinct(labels: Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(label) for label in labels)
    if len(set(names)) < len(names):
        raise DataError(f"labels={list(names)} names a class twice; name each once")
    return names


def _names(table: Table, column: str, found: list[list[str]]) -> tuple[str, ...]:
    """The label set of training data."""
    occurring = sorted({name for row in found for name in row}, key=natural)
    where = f'{table.origin.name}: column "{column}"'
    if len(occurring) < 2:
        have = f'only one class, "{occurring[0]}"' if occurring else "no label"
        raise DataError(f"{where} holds {have}; give examples of at least two classes")
    if column in table.class_names:
        return table.class_names[column]
    if len(occurring) > _MANY:
        if all(map(_is_number, occurring)) and any("." in name for name in occurring):
            raise DataError(
                f"{where} holds {len(occurring)} different numbers, such as {occurring[0]}; to "
                f'predict numbers pass problem_type="{REGRESSION}"'
            )
        if len(occurring) > len(found) / 2:
            raise DataError(
                f"{where} holds {len(occurring)} different labels in {len(found)} rows; name the "
                "column that holds the classes"
            )
    return tuple(occurring)


def natural(name: str) -> tuple:
    """Sort key: numbers by value, then names, with the numbers in them by value."""
    if _is_number(name):
        return 0, float(name), name
    parts = re.split(r"(\d+)", name.casefold())  # text, digits, text, …
    return 1, [int(p) if k % 2 else p for k, p in enumerate(parts)], name


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _unknown(table: Table, i: int, column: str, name: str, names: Sequence[str]) -> DataError:
    like = [n for n in names if n.casefold() == name.casefold()]
    like += difflib.get_close_matches(name, names, n=1)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    remedy = f'did you mean "{like[0]}"?' if like else "correct it, or add it to the labels"
    return DataError(
        f'{table.where(i)}: label "{name}" in column "{column}" is not one of the labels {shown}; '
        f"{remedy}"
    )


def read_numbers(
    table: Table, column: str, labels: Sequence[str] | None = None
) -> tuple[list[list[float]], tuple[str, ...]]:
    """The numbers of each row, and what they are called; see `read_classification`."""
    rows = []
    for i in range(len(table)):
        value = table.value(i, column)
        values = value if isinstance(value, list) and value else [value]
        rows.append([_number(table, i, column, v) for v in values])
        if len(rows[i]) != len(rows[0]):
            raise DataError(
                f'{table.where(i)}: {len(rows[i])} numbers in column "{column}" where the first '
                f"row has {len(rows[0])}; give as many in every row"
            )
    size = len(rows[0])
    names = (column,) if size == 1 else tuple(f"{column}_{k}" for k in range(size))
    if labels is not None:
        names = _distinct(labels)
        if len(names) != size:
            raise DataError(
                f'{table.origin.name}: {size} numbers a row in column "{column}" but '
                f"{len(names)} names, {', '.join(names)}; name each number, or leave out labels"
            )
    return rows, names


def _number(table: Table, i: int, column: str, value: Any) -> float:
    where = f'{table.where(i)}: the value in column "{column}" is'
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where} empty; write a number, or remove the row")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise DataError(f"{where} a {type(value).__name__}; write a number such as 2.5")
    try:
        number = float(value)
    except ValueError:
        raise DataError(f'{where} "{value}", not a number; correct it or remove the row') from None
    if not math.isfinite(number):
        raise DataError(f"{where} {number}, which is not finite; correct it or remove the row")
    return number


def balanced_weights(labels: Sequence[int], num_classes: int) -> tuple[float, ...]:
    """Class weights n / (N · count), under which all classes weigh alike.

    The "balanced" weights of scikit-learn; 0 for a class that does not occur.

    Raises:
      DataError: a label outside 0 … N − 1, or no label at all.
    """
    counts = collections.Counter(labels)
    if not counts or min(counts) < 0 or max(counts) >= num_classes:
        raise DataError(f"labels {sorted(counts)[:20]} are not within 0 … {num_classes - 1}")
    n = len(labels)
    return tuple(n / (num_classes * counts[k]) if counts[k] else 0.0 for k in range(num_classes))


def positive_weights(labels: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Negatives / positives of each class, of multi-label targets [n, N]: torch's `pos_weight`.

    1 for a class that applies to no row or to all.
    """
    n = len(labels)
    counts = [sum(column) for column in zip(*labels, strict=True)]
    return tuple((n - count) / count if 0 < count < n else 1.0 for count in counts)
