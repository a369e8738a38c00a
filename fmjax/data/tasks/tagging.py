"""Sentences of words with a tag each: CoNLL-style files, JSON lines and data sets."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.tasks import schemes
from fmjax.data.tasks.sentences import Sentences, read_sentences
from fmjax.data.tasks.tables import Report


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
    read = read_sentences(str(name), word_column, tag_column, names)
    if not read.words:
        raise DataError(f"{name}: no sentences; give a file with a word and its tag on each line")
    return _understand(read, names, scheme)


def _understand(read: Sentences, names: Sequence[str] | None, scheme: str | None) -> Tagging:
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
