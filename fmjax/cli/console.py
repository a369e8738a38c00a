"""What commands say: results on standard output, the rest where it does not get in the way."""

import dataclasses
import shlex
from typing import Any

import tyro

MARKERS = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.FlagCreatePairsOff,
)
"""How tyro reads every dataclass of fmjax: nested ones share one flat list of flags."""


def command_line(name: str, options: Any, wrap: bool = False) -> str:
    """The `fmjax …` line that parses to these options; defaults are left out.

    Args:
      name: of the sub-command.
      options: its dataclass.
      wrap: one flag a line, many values too, continued with backslashes.
    """
    parts = [f"fmjax {name}"]
    for flag, value in _flags(options, {}):
        values = value if isinstance(value, tuple) else (value,)
        part = " ".join([flag, *(shlex.quote(str(v)) for v in values)])
        if wrap and len(values) > 2:
            part = " \\\n        ".join([flag, *(shlex.quote(str(v)) for v in values)])
        parts.append(part)
    return (" \\\n    " if wrap else " ").join(parts)


def _flags(options: Any, defaults: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for field in dataclasses.fields(options):
        value, default = getattr(options, field.name), getattr(defaults, field.name, field.default)
        flag = "--" + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            found += _flags(value, default)
        elif isinstance(value, bool):
            found += [(flag, ())] if value else []
        elif value != default:
            found.append((flag, value))
    return found


def number(x: float) -> str:
    """A number as people write it: 1,234,567 · 56.8 · 0.0003."""
    if x != x or x in (float("inf"), float("-inf")):
        return str(x)
    if isinstance(x, int) or abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.3g}" if abs(x) < 100 else f"{x:.1f}"


def size(nbytes: float) -> str:
    """Bytes as people write them: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError("unreachable")
