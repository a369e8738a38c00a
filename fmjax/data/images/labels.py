"""Labels as files have them, as numbers of classes."""

from collections.abc import Sequence
from typing import Any

from fmjax.core.errors import DataError

_CLASSES = 100_000  # or as many as there are examples: larger numbers are names


def number_labels(
    values: Sequence[Any], class_names: Sequence[str] | None, where: str
) -> tuple[list[int | None], tuple[str, ...]]:
    """Numbers and class names.

    Args:
      values: of each example; None or "" for none. Numbers are classes as they are. Where one of
        them is anything else, or so large that it must be an identifier (at least 100,000, and at
        least the number of examples), all are names, numbered in the order of the sorted names.
      class_names: in this order, in place of what the values say.
      where: what errors call the file.

    Raises:
      DataError: a name that is not in class_names, or a number that has no name there.
    """
    texts = [None if value is None else str(value).strip() for value in values]
    given = {text for text in texts if text}
    most = max(_CLASSES, len(texts), len(class_names or ()))
    # The length first: Python makes no number of thousands of digits.
    numbers = all(text.isdecimal() and len(text) < 19 and int(text) < most for text in given)
    if class_names is None:
        if not given:
            return [None] * len(texts), ()
        count = max(map(int, given)) + 1 if numbers else 0
        class_names = [str(i) for i in range(count)] if numbers else sorted(given)
    names = tuple(class_names)
    if numbers and not given <= set(names):
        table = {text: int(text) for text in given if int(text) < len(names)}
    else:
        table = {name: i for i, name in enumerate(names)}
    if unknown := sorted(given - table.keys()):
        raise DataError(
            f'{where}: the label "{unknown[0]}" is none of the {len(names)} classes '
            f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''}); give other class_names"
        )
    return [table[text] if text else None for text in texts], names
