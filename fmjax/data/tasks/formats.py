"""TSV, CSV and JSON-lines files as rows with named columns."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmjax.core.errors import DataError
from fmjax.data.sources import parse_line, read_text

KINDS = (".tsv", ".csv", ".jsonl", ".ndjson")


class FileRows(NamedTuple):
    """Rows as dicts, the names of all columns, and the line at which each row begins."""

    rows: list[dict[str, Any]]
    columns: tuple[str, ...]
    lines: list[int]


def read_rows(name: str) -> FileRows:
    """The rows of a file; formats and errors as in `read_table`."""
    kind = Path(name.lower().removesuffix(".gz")).suffix
    if not Path(name).is_file():
        raise DataError(
            f"{name}: no such file; give a {', '.join(KINDS)} file (or .gz), movie_reviews, or "
            "tfds:NAME"
        )
    if kind not in KINDS:
        remedy = "write one object a line as .jsonl" if kind == ".json" else (
            f"give a {', '.join(KINDS)} file, or one of these with .gz"
        )  # fmt: skip
        raise DataError(f"{name}: cannot tell rows from a {kind or 'nameless'} file; {remedy}")
    text = read_text(name)
    if not text.strip():
        raise DataError(f"{name}: the file is empty; give a file with rows in it")
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(text, name)
    if kind == ".csv":
        return _with_header(_csv(text, name, ","), name, kind)
    quoted_header = text.lstrip("\n").startswith('"')
    return _with_header(_csv(text, name, "\t") if quoted_header else _tsv(text), name, kind)


def _json_lines(text: str, name: str) -> FileRows:
    rows, numbers = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(parse_line(line, name, number))
            numbers.append(number)
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return FileRows(rows, columns, numbers)


def _csv(text: str, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the row's first line, its fields)."""
    csv.field_size_limit(2**31 - 1)  # texts may be long; the file is in memory already
    reader = csv.reader(
        (line + "\n" for line in text.split("\n")), delimiter=delimiter, strict=True
    )
    start = 1
    try:
        for fields in reader:
            if fields:  # a blank line has none
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as e:
        raise DataError(
            f"{name}, line {start}: {e}; close the quotes of this row, and double quotes within "
            "a quoted field"
        ) from e


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(" "):  # tabs alone are a row of empty fields
            yield number, [_unquote(field) for field in line.split("\t")]


def _unquote(field: str) -> str:
    if len(field) > 3 and field[0] == field[-1] == '"':
        inner = field[1:-1]
        if '""' in inner and '"' not in inner.replace('""', ""):
            return inner.replace('""', '"')
    return field


def _with_header(lines: Iterator[tuple[int, list[str]]], name: str, kind: str) -> FileRows:
    header_line, header = next(lines)
    columns = tuple(column.strip() for column in header)
    twice = [c for i, c in enumerate(columns) if c in columns[:i]]
    if twice or not all(columns):
        what = f'names the column "{twice[0]}" twice' if twice and twice[0] else (
            "has a column without a name"
        )  # fmt: skip
        raise DataError(
            f"{name}, line {header_line}: the header {what}; give each column a name of its own"
        )
    rows, numbers = [], []
    for number, fields in lines:
        if len(fields) != len(columns):
            remedy = "put quotes around a text that holds commas" if kind == ".csv" else (
                "a text must not hold tabs or line breaks (a .csv in quotes may)"
            )  # fmt: skip
            raise DataError(
                f"{name}, line {number}: {len(fields)} fields where the header has {len(columns)} "
                f"({', '.join(columns)}); {remedy}"
            )
        rows.append(dict(zip(columns, fields, strict=True)))
        numbers.append(number)
    if not rows:
        raise DataError(f"{name}: no rows after the header; give a file with rows in it")
    return FileRows(rows, columns, numbers)
