"""Lists of module names and regular expressions, as the fields of adapter specs take them."""

import re
from collections.abc import Iterable
from typing import Any

from fmjax.core.errors import ConfigError

Names = tuple[str, ...]


def names(spec: str, field: str, value: Any, listed: bool = False) -> Names | str:
    """Normalises a field: a tuple of names, or the string of a regular expression.

    Args:
      spec: what the field belongs to, for messages: "LoRA".
      field: its name.
      value: one name or several in any collection, or a regular expression.
      listed: only names; a string is one of them.

    Raises:
      ConfigError: neither names nor a regular expression.
    """
    if isinstance(value, str) and not listed:
        if value:
            compiled(spec, field, [value])
        return value
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple | set | frozenset) or not all(
        isinstance(name, str) and name for name in found
    ):
        raise ConfigError(f"{spec}: {field}={value!r} must be names or a regular expression")
    # Sets have no order of their own; a spec must not depend on the hash seed.
    return tuple(sorted(found) if isinstance(found, set | frozenset) else found)


def compiled(spec: str, field: str, patterns: Iterable[str]) -> None:
    """Refuses what is no regular expression.

    Raises:
      ConfigError: such a pattern.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as e:
            raise ConfigError(
                f"{spec}: {field}: {pattern!r} is not a regular expression: {e}"
            ) from e
