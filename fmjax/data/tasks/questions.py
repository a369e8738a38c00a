"""Questions answered by a passage of a context: SQuAD's JSON, JSON lines and data sets.

SQuAD 1.1: Rajpurkar et al. 2016; 2.0, with questions that have no answer: Rajpurkar et al. 2018.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.sources import read_text
from fmjax.data.tasks.tables import Report, read_table

_FORM = (
    '{"data": [{"paragraphs": [{"context": …, "qas": [{"id": …, "question": …, "answers": …}]}]}]}'
)


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions with their contexts.

    Attributes:
      ids: of each question, all different.
      questions: as written.
      contexts: as written; answers and predictions count characters in it.
      answers: of each question its accepted answers, (text, first character); none where the
        context has no answer (SQuAD 2.0), or where none was asked for.
      places: of each question, "file, line 3" or "file, question ID".
      report: how many were read; none are left out.
    """

    ids: list[str]
    questions: list[str]
    contexts: list[str]
    answers: list[list[tuple[str, int]]]
    places: list[str]
    report: Report

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, i: int) -> str:
        """Such as "train.json, question 56be4db0"."""
        return self.places[i]

    def keys(self) -> list[tuple[str, str]]:
        """Question and context of each, by which duplicates are told."""
        return list(zip(self.questions, self.contexts, strict=True))

    def select(self, indices: Sequence[int]) -> "Questions":
        """These questions, in this order; the report stays that of the reading."""
        fields = ("ids", "questions", "contexts", "answers", "places")
        return dataclasses.replace(
            self, **{field: [getattr(self, field)[i] for i in indices] for field in fields}
        )

    @property
    def has_unanswerable(self) -> bool:
        """Whether some question has no answer, as in SQuAD 2.0."""
        return not all(self.answers)


def read_questions(name: str | Path, *, need_answers: bool = True) -> Questions:
    """Reads questions, from one of

    - a `.json` file as SQuAD 1.1 or 2.0 (`is_impossible`) has it, also `.json.gz`;
    - JSON lines (`.jsonl`, `.ndjson`, also `.gz`) or a `tfds:` name, each row with `question`,
      `context`, `answers` (`{"text": [...], "answer_start": [...]}`, with empty lists where there
      is no answer) and `id`, without which the row's number is taken.

    Args:
      need_answers: False also takes questions that say nothing of an answer, for prediction.

    Raises:
      DataError: broken JSON; a missing key; an empty question, context or answer; an answer that
        is not at its `answer_start`; an id given twice; no questions. Names the file, the line or
        the question, and the remedy.
    """
    suffix = Path(str(name).removesuffix(".gz")).suffix
    rows = list(_squad(Path(name)) if suffix == ".json" else _flat(str(name)))
    if not rows:
        raise DataError(f"{name}: no questions; write them as {_FORM}")
    seen: dict[str, str] = {}
    out = Questions([], [], [], [], [], Report(len(rows)))
    for place, ident, context, qa in rows:
        if ident in seen:
            raise DataError(
                f'{place}: id "{ident}" was given before ({seen[ident]}); give each question its '
                "own"
            )
        seen[ident] = place
        out.ids.append(ident)
        out.questions.append(_text(qa, "question", place))
        out.contexts.append(context)
        out.answers.append(_answers(qa, context, place, need_answers))
        out.places.append(place)
    return out


# (place, id, context, the object with question and answers)
_Row = tuple[str, str, str, dict[str, Any]]


def _squad(path: Path) -> Iterator[_Row]:
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as e:
        raise DataError(
            f"{path}, line {e.lineno}: not valid JSON ({e.msg} at column {e.colno}); repair it, or "
            "name the file .jsonl if it has one object a line"
        ) from e
    for a, article in enumerate(_list(document, "data", str(path))):
        at = f"{path}, data[{a}]"
        for p, paragraph in enumerate(_list(article, "paragraphs", at)):
            there = f"{at}.paragraphs[{p}]"
            context = _text(paragraph, "context", there)
            for q, qa in enumerate(_list(paragraph, "qas", there)):
                _object(qa, f"{there}.qas[{q}]")
                ident = qa.get("id")
                if not isinstance(ident, (str, int)) or ident == "":
                    raise DataError(f'{there}.qas[{q}]: no "id"; give each question one')
                yield f"{path}, question {ident}", str(ident), context, qa


def _flat(name: str) -> Iterator[_Row]:
    table = read_table(name)
    for column in ("question", "context"):
        table.require(column)
    for i, row in enumerate(table.rows):
        place = table.where(i)
        ident = i if row.get("id") is None else row["id"]
        yield place, str(ident), _text(row, "context", place), row


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a {type(value).__name__}, not an object; the form is {_FORM}")
    return value


def _list(value: Any, key: str, where: str) -> list:
    entries = _object(value, where).get(key)
    if not isinstance(entries, list):
        raise DataError(
            f'{where}: no list "{key}" (it has {", ".join(value) or "nothing"}); the form is '
            f"{_FORM}, or one question a line in a .jsonl file"
        )
    return entries


def _text(value: Any, key: str, where: str) -> str:
    text = _object(value, where).get(key)
    if key not in value:
        raise DataError(f'{where}: no "{key}"; it has {", ".join(value) or "nothing"}')
    if not isinstance(text, str):
        raise DataError(f'{where}: "{key}" is a {type(text).__name__}, not text; write a string')
    if not text.strip():
        raise DataError(f'{where}: "{key}" is empty; fill it in or remove the question')
    return text


def _answers(qa: dict[str, Any], context: str, where: str, needed: bool) -> list[tuple[str, int]]:
    impossible = qa.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise DataError(f'{where}: "is_impossible" is {impossible!r}; write true or false')
    given = qa.get("answers")
    if given is None and (impossible or not needed):
        return []
    if given is None:
        raise DataError(
            f'{where}: no "answers"; add them, or "is_impossible": true if there is no answer'
        )
    pairs = _pairs(given, where)
    if impossible and pairs:
        raise DataError(
            f'{where}: "is_impossible" is true, but there are answers; change the one or the other'
        )
    # The lists of the flat form say by being empty that there is no answer; SQuAD's own says it.
    if not pairs and needed and not impossible and isinstance(given, list):
        raise DataError(
            f'{where}: "answers" is empty; add one, or "is_impossible": true if there is none'
        )
    for text, start in pairs:
        _check_answer(text, start, context, where)
    return pairs


def _pairs(given: Any, where: str) -> list[tuple[Any, Any]]:
    """(text, start) of both forms: a list of objects, or an object of lists."""
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise DataError(
                f'{where}: "answers" must have the lists "text" and "answer_start" of one length; '
                'write {"text": ["…"], "answer_start": [0]}'
            )
        return list(zip(texts, starts, strict=True))
    if not isinstance(given, list) or not all(
        isinstance(a, dict) and "text" in a and "answer_start" in a for a in given
    ):
        raise DataError(
            f'{where}: "answers" must be a list of {{"text": "…", "answer_start": 0}}; write it so'
        )
    return [(a["text"], a["answer_start"]) for a in given]


def _check_answer(text: Any, start: Any, context: str, where: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: an answer is {text!r}; write its text, or remove it")
    if not isinstance(start, int) or isinstance(start, bool):
        raise DataError(
            f'{where}: the "answer_start" of "{_short(text)}" is {start!r}; write the number of '
            "its first character in the context"
        )
    if start >= 0 and context.startswith(text, start):
        return
    count = context.count(text)
    if count == 0:
        hint = "nor anywhere in the context; copy it from there letter by letter"
    elif count == 1:
        hint = f"but at {context.index(text)}; correct answer_start"
    else:
        hint = f"but at {count} other places, first at {context.index(text)}; correct answer_start"
    raise DataError(
        f'{where}: answer "{_short(text)}" is not at answer_start={start} (counted in characters), '
        f"{hint}"
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:59] + "…"
