"""What `fmjax predict` and `fmjax embed` read: rows of files, or of standard input as they come."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from fmjax.core.errors import ConfigError, DataError
from fmjax.data.sources import parse_line, read_text
from fmjax.data.tasks.tables import Origin, Table, read_table
from fmjax.parallel import DEFAULT_RULES, shard_batch

STDIN = "-"


def read_inputs(name: str, column: str, chunk: int) -> Iterator[Table]:
    """Tables of rows to answer: one of a whole file, or of `chunk` lines of standard input at most.

    Args:
      name: a file that `read_table` reads; a .txt file (.gz or not), one text a line; or "-",
        standard input, where a line that begins with { is JSON and any other a text.
      column: what a plain line of text is called.
      chunk: lines of standard input that are answered together.

    Raises:
      DataError: as `read_table`; a broken JSON line, and input without any line.
    """
    if name == STDIN:
        yield from _stream(_decoded(sys.stdin), column, chunk)
    elif Path(name.removesuffix(".gz")).suffix == ".txt":
        yield _table(name, enumerate(read_text(name).split("\n"), 1), column)
    else:
        yield read_table(name)


def _decoded(stdin: TextIO) -> Iterator[str]:
    """Lines of standard input as UTF-8, whatever the terminal is set to; a byte order mark is none.

    Raises:
      DataError: another encoding, by the line.
    """
    for number, line in enumerate(getattr(stdin, "buffer", stdin), 1):
        if isinstance(line, str):
            yield line
            continue
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as e:
            raise DataError(
                f"standard input, line {number}: not UTF-8 ({e.reason}); convert it first"
            ) from e


def _stream(lines: Iterable[str], column: str, chunk: int) -> Iterator[Table]:
    numbered = ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, 1))
    filled = (pair for pair in numbered if pair[1].strip())
    seen = False
    while piece := list(itertools.islice(filled, chunk)):
        seen = True
        yield _table("standard input", piece, column)
    if not seen:
        raise DataError("standard input is empty; give a text or a JSON object a line")


def _table(name: str, numbered: Iterable[tuple[int, str]], column: str) -> Table:
    rows, numbers = [], []
    for number, line in numbered:
        if line.strip():
            is_json = line.lstrip().startswith("{") and name == "standard input"
            rows.append(parse_line(line, name, number) if is_json else {column: line})
            numbers.append(number)
    if not rows:
        raise DataError(f"{name}: the file is empty; give a text a line")
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(rows, columns, Origin(name, numbers))


def check_sizes(batch_size: int, max_length: int, mesh: jax.sharding.Mesh) -> None:
    """Before a model is read.

    Raises:
      FmjaxError: a batch that the devices cannot split, or a length with room for no text.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size} must be at least 1")
    if max_length < 3:
        raise ConfigError(f"--max-length {max_length} must be at least 3: a token and two special")
    row = jax.ShapeDtypeStruct((batch_size,), "int32")
    shard_batch({"--batch-size": row}, mesh, DEFAULT_RULES)


def beside(row: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its answer; a field of its own under the same name becomes "given_…"."""
    own = {f"given_{name}" if name in answer else name: value for name, value in row.items()}
    return own | dict(answer)


def write_lines(file: TextIO, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, on their way at once."""
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()
