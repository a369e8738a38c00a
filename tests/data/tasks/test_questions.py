"""Reading questions: SQuAD's JSON and JSON lines."""

import gzip
import json

import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks.questions import read_questions

CONTEXT = "In the beginning God created the heaven and the earth. And the earth was without form."
CREATED = {"text": "God", "answer_start": 17}


def squad(*qas, context=CONTEXT, **extra):
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [
        {"context": context, "qas": list(qas), **extra}]}]}  # fmt: skip


def qa(ident="q1", question="Who created the earth?", answers=(CREATED,), **extra):
    return {"id": ident, "question": question, "answers": list(answers), **extra}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def without(record, key):
    return {k: v for k, v in record.items() if k != key}


def test_squad(tmp_path):
    two = qa("q2", answers=[CREATED, {"text": "God created", "answer_start": 17}])
    path = write(tmp_path / "train.json", squad(qa(), two))
    got = read_questions(path)
    assert got.ids == ["q1", "q2"] and got.contexts == [CONTEXT] * 2
    assert got.questions[0] == "Who created the earth?"
    assert got.answers == [[("God", 17)], [("God", 17), ("God created", 17)]]
    assert got.where(1) == f"{path}, question q2" and len(got) == got.report.read == 2
    assert not got.has_unanswerable
    with gzip.open(tmp_path / "train.json.gz", "wt") as f:
        f.write(path.read_text())
    assert read_questions(tmp_path / "train.json.gz").answers == got.answers


def test_squad2(tmp_path):
    impossible = qa("q2", answers=[], is_impossible=True, plausible_answers=[CREATED])
    got = read_questions(write(tmp_path / "a.json", squad(qa(is_impossible=False), impossible)))
    assert got.answers == [[("God", 17)], []] and got.has_unanswerable
    bare = without(impossible, "answers")
    assert read_questions(write(tmp_path / "a.json", squad(bare))).answers == [[]]


def test_json_lines(tmp_path):
    rows = [
        {"id": 7, "question": "Who?", "context": CONTEXT,
         "answers": {"text": ["God"], "answer_start": [17]}},
        {"question": "Why?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
        {"question": "Who?", "context": CONTEXT, "answers": [CREATED]},
        {"question": "Why?", "context": CONTEXT, "is_impossible": True},
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    got = read_questions(path)
    assert got.ids == ["7", "1", "2", "3"]
    assert got.answers == [[("God", 17)], [], [("God", 17)], []]
    assert got.where(2) == f"{path}, line 3"


def test_answers_only_where_needed(tmp_path):
    row = {"question": "Who?", "context": CONTEXT}
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises(DataError, match='line 1: no "answers"; add them, or "is_impossible": true'):
        read_questions(path)
    assert read_questions(path, need_answers=False).answers == [[]]
    path = write(tmp_path / "a.json", squad(qa(answers=[]), without(qa("q2"), "answers")))
    assert read_questions(path, need_answers=False).answers == [[], []]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{\n'data'", "a.json, line 2: not valid JSON .*; repair it, or name the file .jsonl"),
        ('{"id": "a"}\n{"id": "b"}', "line 2: not valid JSON"),
        ([], "a list, not an object; the form is"),
        ({"rows": []}, 'no list "data" .it has rows.; the form is .*jsonl'),
        ({"data": []}, "no questions; write them as"),
        ({"data": [{"title": "t"}]}, 'data.0.: no list "paragraphs"'),
        ({"data": [3]}, "data.0.: a int, not an object"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, r'data.0..paragraphs.0.: no list "qas"'),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r'paragraphs.0.: no "context"; it has qas'),
        (squad(qa(), context=" "), r'paragraphs.0.: "context" is empty; fill it in'),
        (squad(qa(), context=None), r'"context" is a NoneType, not text'),
        (squad(3), r"qas.0.: a int, not an object"),
        (squad(without(qa(), "id")), r'paragraphs.0..qas.0.: no "id"'),
        (squad(without(qa(), "question")), 'question q1: no "question"; it has id, answers'),
        (squad(qa(question="")), 'question q1: "question" is empty'),
        (squad(without(qa(), "answers")), 'question q1: no "answers"; add them, or'),
        (squad(qa(answers=[])), 'question q1: "answers" is empty; add one, or "is_impossible"'),
        (squad(qa(is_impossible=True)), 'q1: "is_impossible" is true, but there are answers'),
        (squad(qa(is_impossible="no")), "q1: \"is_impossible\" is 'no'; write true or false"),
        (squad(qa(), qa()), 'question q1: id "q1" was given before'),
        (squad(qa(answers=["God"])), 'q1: "answers" must be a list of'),
        (squad(qa(answers=[{"text": "God"}])), 'q1: "answers" must be a list of'),
        (squad(qa(answers=[{"text": "", "answer_start": 0}])), "q1: an answer is ''; write its"),
        (squad(qa(answers=[{"text": 3, "answer_start": 0}])), "q1: an answer is 3"),
        (squad(qa(answers=[{"text": "God", "answer_start": "17"}])),
         "q1: the \"answer_start\" of \"God\" is '17'; write the number"),
        (squad(qa(answers=[{"text": "God", "answer_start": 16}])),
         'q1: answer "God" is not at answer_start=16 .* but at 17; correct answer_start'),
        (squad(qa(answers=[{"text": "God", "answer_start": -69}])), "not at answer_start=-69"),
        (squad(qa(answers=[{"text": "earth", "answer_start": 0}])),
         'answer "earth" is not at .*but at 2 other places, first at 48'),
        (squad(qa(answers=[{"text": "god", "answer_start": 17}])),
         'answer "god" is not at .*nor anywhere in the context; copy it'),
        (squad(qa(answers=[{"text": "x" * 80, "answer_start": 17}])), "answer \"x{59}…\" is"),
    ],
)  # fmt: skip
def test_bad_squad(tmp_path, document, message):
    path = write(tmp_path / "a.json", document)
    with pytest.raises(DataError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": CONTEXT, "answers": []}, 'line 2: no "question"'),
        ({"question": "a", "answers": []}, 'line 2: no "context"; it has question, answers'),
        ({"question": " ", "context": "a", "answers": []}, 'line 2: "question" is empty'),
        ({"question": "a", "context": ["a"]}, 'line 2: "context" is a list, not text'),
        ({"question": "a", "context": "a b", "answers": {"text": ["b"], "answer_start": [1]}},
         'line 2: answer "b" is not at answer_start=1 .*but at 2'),
        ({"question": "a", "context": "a", "answers": {"text": ["a"], "answer_start": []}},
         'line 2: "answers" must have the lists "text" and "answer_start" of one length'),
        ({"question": "a", "context": "a", "answers": {"text": "a"}},
         'line 2: "answers" must have the lists'),
        ({"question": "a", "context": "a", "answers": "a"}, 'line 2: "answers" must be a list'),
        ({"question": "a", "context": "a", "answers": []}, 'line 2: "answers" is empty; add one'),
        ({"id": "x", "question": "a", "context": CONTEXT, "answers": [CREATED]},
         'line 2: id "x" was given before .*line 1'),
    ],
)  # fmt: skip
def test_bad_json_lines(tmp_path, row, message):
    good = {"id": "x", "question": "Who?", "context": CONTEXT, "answers": [CREATED]}
    path = write(tmp_path / "a.jsonl", f"{json.dumps(good)}\n{json.dumps(row)}")
    with pytest.raises(DataError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match="nothere.json: no such file"):
        read_questions(tmp_path / "nothere.json")
    with pytest.raises(DataError, match="a.jsonl, line 1: not valid JSON"):
        read_questions(write(tmp_path / "a.jsonl", '{"question": '))
    with pytest.raises(DataError, match='no column "question"; it has text'):
        read_questions(write(tmp_path / "a.jsonl", {"text": "a", "context": "b"}))
