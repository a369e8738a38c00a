"""Rows with named columns, from files and data sets, that know where they came from."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.corpora import load_corpus, sentiment
from fmjax.data.sources import TfdsSource
from fmjax.data.tasks.formats import read_rows
from fmjax.data.tasks.values import plain

CORPUS = "movie_reviews"
SENTIMENT = ("negative", "positive")
NEUTRAL = "rated neutral, from −0.5 to 0.5"
# NAME:SPLIT; a data set's version (name:1.0.0) is part of its name, a split starts with a letter.
_SPLIT = re.compile(r"(?P<name>.+?(?::\d[\d.*]*)?)(?::(?P<split>[A-Za-z_].*))?")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The place of each row: `name`, and its line in a file or its number in a data set."""

    name: str
    numbers: Sequence[int]
    unit: str = "line"

    def where(self, i: int) -> str:
        """Such as "train.tsv, line 12"."""
        return f"{self.name}, {self.unit} {self.numbers[i]}"

    def select(self, indices: Sequence[int]) -> "Origin":
        return dataclasses.replace(self, numbers=[self.numbers[i] for i in indices])


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows that were read, and how many of them were left out for which reason."""

    read: int
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.read - sum(self.dropped.values())

    def and_dropped(self, reasons: Mapping[str, int]) -> "Report":
        """This report with more rows left out; reasons without rows are not named."""
        dropped = dict(self.dropped)
        for reason, count in reasons.items():
            if count:
                dropped[reason] = dropped.get(reason, 0) + count
        return Report(self.read, dropped)

    def __str__(self) -> str:
        if not self.dropped:
            return f"{self.read} rows, none left out"
        why = "; ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return f"{self.kept} of {self.read} rows; left out: {why}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows as dicts.

    Attributes:
      rows: column → value: str in TSV and CSV, any JSON value in JSON lines and of TFDS.
      columns: of the header; of all rows together in JSON lines.
      origin: where each row is.
      class_names: names behind the integers of a column (TFDS's ClassLabel).
      dropped: reason → rows left out.
    """

    rows: list[dict[str, Any]]
    columns: tuple[str, ...]
    origin: Origin
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def report(self) -> Report:
        """Rows read and left out."""
        return Report(len(self.rows) + sum(self.dropped.values()), self.dropped)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        """Such as "train.tsv, line 12": the physical line at which row `i` begins."""
        return self.origin.where(i)

    def require(self, column: str, option: str = "") -> None:
        """Raises DataError, with the columns that there are, if there is no such column.

        Args:
          option: what the column was named with, for the remedy.
        """
        if column in self.columns:
            return
        name = self.origin.name
        like = [c for c in self.columns if c.casefold() == column.casefold()]
        like += difflib.get_close_matches(column, self.columns, n=1)
        odd = [d for d in ";\t," if len(self.columns) == 1 and d in self.columns[0]]
        if odd:
            hint = f"its header seems to be separated by {odd[0]!r}; convert or rename the file"
        elif like:
            hint = f'did you mean "{like[0]}"?'
        else:
            hint = "name one of them" + (f" with {option}" if option else "")
            if name.removesuffix(".gz").endswith((".tsv", ".csv")):
                hint += "; the first line must be a header"
        raise DataError(f'{name}: no column "{column}"; it has {", ".join(self.columns)}; {hint}')

    def value(self, i: int, column: str) -> Any:
        """A value, or DataError where row `i` (of JSON lines) lacks the column."""
        try:
            return self.rows[i][column]
        except KeyError:
            raise DataError(
                f'{self.where(i)}: no field "{column}"; it has {", ".join(self.rows[i]) or "none"}'
            ) from None

    def text(self, i: int, column: str) -> str:
        """A non-blank string, or DataError naming file, line and column."""
        text = self.value(i, column)
        if not isinstance(text, str):
            raise DataError(
                f'{self.where(i)}: column "{column}" holds a {_kind(text)}, not text; write it in '
                "quotes, or name the text column"
            )
        if not text.strip():
            raise DataError(
                f'{self.where(i)}: the text in column "{column}" is empty; fill it in or remove '
                "the row"
            )
        check_whole(text, self.where(i), column)
        return text

    def texts(self, column: str) -> list[str]:
        """`text` of every row."""
        return [self.text(i, column) for i in range(len(self))]


def check_whole(text: str, where: str, column: str) -> None:
    """Raises a DataError for a text with half a character, as JSON's "\\ud83d" is alone."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f'{where}: the text in column "{column}" has half a character at place {e.start}; '
            "repair its encoding"
        ) from e


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def split_of(name: str) -> tuple[str, str | None]:
    """NAME:SPLIT in its two parts; the name of a file that exists is all name."""
    if Path(name).is_file():
        return name, None
    match = _SPLIT.fullmatch(name.removeprefix("tfds:"))
    if match is None:
        return name, None
    return "tfds:" * name.startswith("tfds:") + match["name"], match["split"]


def read_table(name: str | Path, columns: Mapping[str, str] | Sequence[str] = ()) -> Table:
    """The rows of a file or of a data set.

    - `.tsv`, `.csv`, `.jsonl` and `.ndjson` files, each also with `.gz`, in UTF-8. TSV and CSV
      begin with a header; blank lines are skipped.
    - CSV: as RFC 4180, quoted fields may hold commas, line breaks and doubled quotes.
    - TSV: a line is a row, and quotes are ordinary characters, so that a text may begin with one.
      Two forms that spreadsheet programs write are undone: a field in quotes whose inner quotes
      are all doubled, and, where the header is in quotes, quoting as in CSV.
    - `tfds:NAME[/CONFIG][:VERSION]`, or the directory of a prepared data set. Byte strings become
      `str`.
    - `movie_reviews`, the shipped corpus: `text`, `rating` (−4 to 4) and `label`. A table that
      needs `label` leaves out, and counts, the reviews rated from −0.5 to 0.5.

    Data sets and the corpus have splits: `NAME:SPLIT`, such as `tfds:imdb_reviews:test`,
    `tfds:imdb_reviews:train[:90%]` or `movie_reviews:validation`; without, "train".

    Args:
      name: see above.
      columns: that must be there; a mapping gives the arguments that named them, for the remedy.

    Raises:
      DataError: no such file, not UTF-8, no rows, an unknown kind; a header with a name twice or
        none; a row with too many or too few fields; broken JSON; a missing column. Names the file,
        the line and the remedy.
    """
    name, split = split_of(str(name))
    if name.startswith("tfds:") or Path(name).is_dir():
        table = _tfds(name, split or "train")
    elif name == CORPUS:
        table = _movie_reviews(split or "train", drop_neutral="label" in columns)
    elif split is not None and Path(name).is_file():
        raise DataError(f"{name} is a file and has no splits; leave out :{split}")
    else:
        rows = read_rows(f"{name}:{split}" if split else name)
        table = Table(rows.rows, rows.columns, Origin(name, rows.lines))
    for column in columns:
        table.require(column, columns[column] if isinstance(columns, Mapping) else "")
    return table


def _tfds(name: str, split: str) -> Table:
    bare = name.removeprefix("tfds:")
    source = TfdsSource(bare, split)
    rows = [plain(source[i]) for i in range(len(source))]
    origin = Origin(f"{name}:{split}", range(len(rows)), "example")
    return Table(rows, tuple(rows[0]), origin, source.class_names)


def _movie_reviews(split: str, drop_neutral: bool) -> Table:
    examples = [{**e, "row": i} for i, e in enumerate(load_corpus(CORPUS, split))]
    columns: tuple[str, ...] = ("text", "rating")
    dropped = {}
    if drop_neutral:
        rated = [{**e, "label": SENTIMENT[e["label"]]} for e in sentiment(examples)]
        dropped[NEUTRAL] = len(examples) - len(rated)
        examples, columns = rated, ("text", "rating", "label")
    origin = Origin(f"{CORPUS}:{split}", [e.pop("row") for e in examples], "example")
    return Table(examples, columns, origin, dropped=dropped)
