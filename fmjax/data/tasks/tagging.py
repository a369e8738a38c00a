"""Sentences of words with a tag each: CoNLL-style files, JSON lines and data sets."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.sources import read_text
from fmjax.data.tasks import schemes
from fmjax.data.tasks.tables import Report, read_table, split_of
from fmjax.data.tasks.values import plain

DOCSTART = "-DOCSTART- lines"
SPLIT_TOKENS = "multi-word or empty tokens of CoNLL-U"
_JSON = (".jsonl", ".ndjson")
_WORD_FIELDS = ("tokens", "words")
_TAG_FIELDS = ("tags", "labels", "ner_tags", "ner")


@dataclasses.dataclass(frozen=True)
class Tagging:
    """Tagged sentences.

    Attributes:
      words: of each sentence, at least one.
      tags: of each sentence, an index into `names` for each word.
      names: the label set; "O" is number 0 where it exists.
      scheme: "BIO", "IOBES" or "plain"; IOB1 is read as BIO.
      places: of each sentence, "file, line 3".
      lines: in CoNLL files, the line of each word.
      report: what was left out.
      notes: what was changed, for the user to read.
    """

    words: list[list[str]]
    tags: list[list[int]]
    names: tuple[str, ...]
    scheme: str
    places: list[str]
    lines: list[list[int]] | None
    report: Report
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.words)

    def where(self, i: int) -> str:
        """Such as "train.conll, line 12": where sentence `i` begins."""
        return self.places[i]

    def keys(self) -> list[str]:
        """The words of each sentence, by which duplicates are told."""
        return [" ".join(words) for words in self.words]

    def select(self, indices: Sequence[int]) -> "Tagging":
        """These sentences, in this order; the report stays that of the reading."""
        chosen = {
            field: [column[i] for i in indices]
            for field in ("words", "tags", "places", "lines")
            if (column := getattr(self, field)) is not None
        }
        return dataclasses.replace(self, **chosen)

    def tag_names(self, i: int) -> list[str]:
        """The tags of sentence `i` as text."""
        return [self.names[tag] for tag in self.tags[i]]


@dataclasses.dataclass
class _Sentences:
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


def read_tagging(
    name: str | Path,
    *,
    names: Sequence[str] | None = None,
    scheme: str | None = None,
    word_column: int | str | None = None,
    tag_column: int | str | None = None,
) -> Tagging:
    """Reads sentences whose words have tags.

    - JSON lines (`.jsonl`, `.ndjson`, each also `.gz`) and `tfds:` names: a list of words ("tokens"
      or "words") and a list as long of tags ("tags", "labels", "ner_tags" or "ner").
    - any other file is CoNLL-style: a word a line with its columns between tabs or spaces, the word
      first and the tag last; a blank line between sentences. Lines that begin with `# ` before the
      words of a sentence are comments, unless they read as a word with a tag that the file uses.
      -DOCSTART- lines, and the multi-word and empty tokens of CoNLL-U, are left out and counted.

    Args:
      names: the label set, such as the training file's; by default the tags of this file.
      scheme: "BIO" (IOB2), "IOB1", "IOBES" (BIOES) or "plain"; by default the one that explains
        the whole file.
      word_column: number of the word's column, from 0 (CoNLL-U: 1), or name of its field.
      tag_column: number of the tag's column; negative counts from the end; or name of its field.

    Raises:
      DataError: a line without its tag or with another number of columns; lists of different
        lengths; an empty sentence or word; tags that break the scheme; a tag outside `names`; no
        sentence at all. Names file, line and remedy.
    """
    bare, _ = split_of(str(name))
    is_table = bare.startswith("tfds:") or Path(bare).is_dir() or (
        Path(bare.removesuffix(".gz")).suffix in _JSON
    )  # fmt: skip
    if is_table:
        read = _read_lists(str(name), word_column, tag_column, names)
    else:
        read = _read_conll(
            Path(name), *_columns(0 if word_column is None else word_column,
                                  -1 if tag_column is None else tag_column)
        )  # fmt: skip
    if not read.words:
        raise DataError(f"{name}: no sentences; give a file with a word and its tag on each line")
    return _understand(read, names, scheme)


def _understand(read: _Sentences, names: Sequence[str] | None, scheme: str | None) -> Tagging:
    """Finds the scheme, checks every tag and numbers them."""
    if scheme is not None:
        found: Any = schemes.scheme_name(scheme)
    elif names is None or schemes.scheme_of_names(names) == "BIO":
        found = schemes.detect(read.tags)  # BIO labels also take a file in IOB1
    else:
        found = schemes.scheme_of_names(names)
    fault = found if isinstance(found, schemes.Fault) else schemes.first_fault(read.tags, found)
    if fault is not None:
        raise DataError(f"{read.where(fault.sentence, fault.word)}: {fault.problem}")
    tags, notes = read.tags, ()
    if found == "IOB1":
        tags, found = [schemes.to_bio(t) for t in tags], "BIO"
        notes = (
            f"{read.name}: IOB1 tags were read as BIO: the first word of an entity has B- now",
        )
    if names is None:
        names = schemes.label_names((tag for t in tags for tag in t), found)
    number = {tag: i for i, tag in enumerate(names)}
    for i, sentence in enumerate(tags):
        for j, tag in enumerate(sentence):
            if tag not in number:
                raise DataError(f"{read.where(i, j)}: {_unknown_tag(tag, names)}")
    return Tagging(
        words=read.words,
        tags=[[number[tag] for tag in sentence] for sentence in tags],
        names=tuple(names),
        scheme=found,
        places=read.places,
        lines=read.lines,
        report=Report(read.rows).and_dropped(read.dropped),
        notes=notes,
    )


def _unknown_tag(tag: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(tag, names, n=1)
    hint = f'did you mean "{close[0]}"?' if close else "correct the tag, or add it to the labels"
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f'tag "{tag}" is not among the {len(names)} labels {shown}; {hint}'


def _columns(word: int | str, tag: int | str) -> tuple[int, int]:
    for option, value in (("word_column", word), ("tag_column", tag)):
        try:
            int(value)
        except ValueError as e:
            raise DataError(
                f'{option}="{value}" names a field, but a CoNLL-style file has columns; give the '
                "column's number, from 0"
            ) from e
    return int(word), int(tag)


def _read_conll(path: Path, word_column: int, tag_column: int) -> _Sentences:
    rows = list(_rows(read_text(path)))
    read = _Sentences(str(path), lines=[])
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
) -> _Sentences:
    table = read_table(name)
    words_in = _field(table, word_field, _WORD_FIELDS, "word_column")
    tags_in = _field(table, tag_field, _TAG_FIELDS, "tag_column")
    numbered = names or table.class_names.get(tags_in)
    read = _Sentences(name, rows=len(table))
    for i in range(len(table)):
        where = table.where(i)
        words = _list(where, words_in, plain(table.value(i, words_in)))
        tags = _list(where, tags_in, plain(table.value(i, tags_in)))
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


def _field(table: Any, given: int | str | None, usual: Sequence[str], option: str) -> str:
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
