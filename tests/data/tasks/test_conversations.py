"""Conversations from files."""

import gzip
import json

import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks import read_conversations


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": ASKED}, ASKED),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            ASKED,
        ),
        ({"prompt": "q", "completion": "a"}, ASKED),
        ({"prompt": ASKED[:1], "completion": ASKED[1:]}, ASKED),
        ({"instruction": "q", "output": "a"}, ASKED),
        ({"instruction": "q", "input": "", "output": "a"}, ASKED),
        (
            {"instruction": "q", "input": "i", "output": "a"},
            [{"role": "user", "content": "q\n\ni"}, ASKED[1]],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASKED[1]]},
         ASKED),
    ],
)  # fmt: skip
def test_forms(row, expected, tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz"):
        data = read_conversations(write(tmp_path / name, row))
        assert data.messages == [expected] and data.where(0).endswith(f"{name}, line 1")


def test_rows_without_an_answer_are_counted(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        {"messages": ASKED[:1]},
        {"messages": ASKED},
        {"prompt": "q", "completion": " "},
    )
    data = read_conversations(file)
    assert len(data) == 1 and data.where(0).endswith("line 2")
    assert str(data.report) == (
        "1 of 3 rows; left out: 1 with an empty message; 1 without an answer of the assistant"
    )
    assert data.keys() == [("q",)] and data.select([0]).messages == [ASKED]
    with pytest.raises(DataError, match="no conversation is left .*give at least one"):
        read_conversations(write(tmp_path / "b.jsonl", {"messages": ASKED[:1]}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no conversation among the fields text; write messages"),
        ({"messages": []}, '"messages" holds an empty list; write a list'),
        ({"messages": "hi"}, '"messages" holds a str; write a list'),
        ({"messages": [*ASKED, "x"]}, '"messages", message 3: not an object'),
        ({"messages": [{"role": "user"}]}, 'message 1: no "content"; it has role'),
        ({"messages": [{"role": "king", "content": "x"}]}, "the role is 'king'; use one of system"),
        ({"conversations": [{"from": "dog", "value": "x"}]}, "the from is 'dog'; use one of human"),
        ({"prompt": 3, "completion": "a"}, '"prompt" holds int, not text; write a string'),
        ({"instruction": "q", "output": None}, '"output" holds null, not text'),
    ],
)
def test_broken_rows_are_named(row, message, tmp_path):
    file = write(tmp_path / "a.jsonl", {"messages": ASKED}, row)
    with pytest.raises(DataError, match=f"a.jsonl, line 2.*{message}"):
        read_conversations(file)
