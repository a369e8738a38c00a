"""Files of tagged sentences as words and tags, both still text."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.sources import read_text
from fmjax.data.tasks.tables import Table, read_table, split_of

DOCSTART = "-DOCSTART- lines"
SPLIT_TOKENS = "multi-word or empty tokens of CoNLL-U"
_JSON = (".jsonl", ".ndjson")
_WORD_FIELDS = ("tokens", "words")
_TAG_FIELDS = ("tags", "labels", "ner_tags", "ner")


@dataclasses.dataclass
class Sentences:
    """What a file says, before its tags are understood."""

    name: str
    words: list[list[str]] = dataclasses.field(default_factory=list)
    tags: list[list[str]] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)
    lines: list[list[int]] | None = None
    rows: int = 0  # sentences, or the lines of words in a CoNLL-style file
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def where(self, sentence: int, word: int) -> str:
        if self.lines is None:
            return f"{self.places[sentence]}, word {word + 1}"
        return f"{self.name}, line {self.lines[sentence][word]}"


def read_sentences(
    name: str,
    word_column: int | str | None,
    tag_column: int | str | None,
    names: Sequence[str] | None,
) -> Sentences:
    """The sentences of a file or data set; formats and errors as in `read_tagging`."""
    bare, _ = split_of(name)
    suffix = Path(bare.removesuffix(".gz")).suffix
    if bare.startswith("tfds:") or Path(bare).is_dir() or suffix in _JSON:
        return _read_lists(name, word_column, tag_column, names)
    word = _column("word_column", 0 if word_column is None else word_column)
    tag = _column("tag_column", -1 if tag_column is None else tag_column)
    return _read_conll(Path(name), word, tag)


def _column(option: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError as e:
        raise DataError(
            f'{option}="{value}" names a field, but a CoNLL-style file has columns; give the '
            "column's number, from 0"
        ) from e


def _read_conll(path: Path, word_column: int, tag_column: int) -> Sentences:
    rows = list(_rows(read_text(path)))
    read = Sentences(str(path), lines=[])
    # A line such as "# O" is a word only if the other lines make that likely.
    sure = [row for _, row in rows if row and not _may_be_comment(row) and not _is_docstart(row)]
    width = len(sure[0]) if sure else 0
    has_tag = -width <= tag_column < width
    tags = {row[tag_column] for row in sure if len(row) == width and has_tag}
    words_open = False
    for number, row in rows:
        if not row:
            words_open = False
            continue
        if _is_docstart(row):
            read.rows += 1
            read.drop(DOCSTART)
            words_open = False
            continue
        is_word = len(row) == width and has_tag and row[tag_column] in tags
        if _may_be_comment(row) and not words_open and not is_word:
            continue
        _check_row(f"{path}, line {number}", row, width, word_column, tag_column)
        read.rows += 1
        if word_column and re.fullmatch(r"\d+[-.]\d+", row[0]):
            read.drop(SPLIT_TOKENS)
            continue
        if not words_open:
            words_open = True
            read.words.append([])
            read.tags.append([])
            read.lines.append([])
            read.places.append(f"{path}, line {number}")
        read.words[-1].append(row[word_column])
        read.tags[-1].append(row[tag_column])
        read.lines[-1].append(number)
    return read


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns); a blank line has none."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t"):
            yield number, []
        elif "\t" in line:
            yield number, [column.strip(" ") for column in line.split("\t")]
        else:
            yield number, re.split(" +", line.strip(" "))


def _may_be_comment(row: Sequence[str]) -> bool:
    return row[0] == "#" or row[0].startswith("# ")


def _is_docstart(row: Sequence[str]) -> bool:
    return row[0] == "-DOCSTART-"


def _check_row(where: str, row: Sequence[str], width: int, word: int, tag: int) -> None:
    least = max(word + 1 if word >= 0 else -word, tag + 1 if tag >= 0 else -tag, 2)
    if width < least or len(row) < least:
        raise DataError(
            f"{where}: {len(row)} column{'s' * (len(row) != 1)}, but the word is taken from column "
            f"{word} and the tag from column {tag} (from 0, or from the end); write both on each "
            "line with a tab or a space between, or name others with word_column= and tag_column="
        )
    if len(row) != width:
        raise DataError(
            f"{where}: {len(row)} columns where the first word of the file has {width}; give all "
            "words the same columns"
        )
    for what, column in (("word", word), ("tag", tag)):
        if not row[column]:
            raise DataError(f"{where}: the {what} is empty; write it, or remove the line")


def _read_lists(
    name: str,
    word_field: int | str | None,
    tag_field: int | str | None,
    names: Sequence[str] | None,
) -> Sentences:
    table = read_table(name)
    words_in = _field(table, word_field, _WORD_FIELDS, "word_column")
    tags_in = _field(table, tag_field, _TAG_FIELDS, "tag_column")
    numbered = table.class_names.get(tags_in) or names
    read = Sentences(name, rows=table.report.read, dropped=dict(table.report.dropped))
    for i in range(len(table)):
        where = table.where(i)
        words = _list(where, words_in, table.value(i, words_in))
        tags = _list(where, tags_in, table.value(i, tags_in))
        if len(words) != len(tags):
            raise DataError(
                f'{where}: {len(words)} in "{words_in}" but {len(tags)} in "{tags_in}"; give each '
                "word one tag"
            )
        if not words:
            raise DataError(f"{where}: an empty sentence; remove the row")
        for j, word in enumerate(words):
            if not isinstance(word, str) or not word:
                raise DataError(
                    f'{where}, word {j + 1}: "{words_in}" holds {word!r}; write the word as text'
                )
        read.words.append(words)
        read.tags.append([_tag(where, j, tag, tags_in, numbered) for j, tag in enumerate(tags)])
        read.places.append(where)
    return read


def _field(table: Table, given: int | str | None, usual: Sequence[str], option: str) -> str:
    if given is None:
        given = next((field for field in usual if field in table.columns), usual[0])
    table.require(str(given), option)
    return str(given)


def _list(where: str, field: str, value: Any) -> list:
    if isinstance(value, list):
        return value
    raise DataError(
        f'{where}: "{field}" holds a {type(value).__name__}, not a list; write one entry a word'
    )


def _tag(where: str, j: int, tag: Any, field: str, names: Sequence[str] | None) -> str:
    if isinstance(tag, str) and tag:
        return tag
    if isinstance(tag, int) and not isinstance(tag, bool):
        if names is None:
            raise DataError(
                f'{where}, word {j + 1}: "{field}" holds the number {tag}; write the tag as text, '
                "or pass the label names in order with names="
            )
        if 0 <= tag < len(names):
            return names[tag]
        raise DataError(
            f'{where}, word {j + 1}: "{field}" holds {tag}, but the labels are 0 to '
            f"{len(names) - 1}; correct it, or add the label"
        )
    raise DataError(f'{where}, word {j + 1}: "{field}" holds {tag!r}; write the tag as text')
