"""Reading tagged sentences: CoNLL-style files and JSON lines."""

import gzip
import json

import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks import sentences
from fmjax.data.tasks.sentences import DOCSTART, SPLIT_TOKENS
from fmjax.data.tasks.tables import Origin, Table
from fmjax.data.tasks.tagging import read_tagging

CONLL = """\
-DOCSTART- -X- O O

# a comment of three words
EU NNP I-ORG
rejects VBZ O
# NN O
call NN O

Peter NNP I-PER
Blackburn NNP I-PER
Brussels NNP B-PER

"""


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def test_conll(tmp_path):
    path = write(tmp_path / "train.conll", CONLL.replace("-X- O O", "-X- O"))
    data = read_tagging(path)
    assert data.words == [["EU", "rejects", "#", "call"], ["Peter", "Blackburn", "Brussels"]]
    assert data.names == ("O", "B-ORG", "I-ORG", "B-PER", "I-PER")
    assert data.tag_names(0) == ["B-ORG", "O", "O", "O"]
    assert data.tag_names(1) == ["B-PER", "I-PER", "B-PER"]
    assert data.scheme == "BIO" and len(data) == 2
    assert data.notes == (f"{path}: IOB1 tags were read as BIO: the first word of an entity has "
                          "B- now",)  # fmt: skip
    assert data.where(1) == f"{path}, line 9" and data.lines[0] == [4, 5, 6, 7]
    assert (data.report.read, data.report.dropped) == (8, {DOCSTART: 1})
    pos = read_tagging(path, tag_column=1)
    assert pos.scheme == "plain" and pos.names == ("NN", "NNP", "VBZ") and not pos.notes


def test_tabs_and_ambiguous_hashes(tmp_path):
    text = "# id 1\n#\tO\nNew York\tB-LOC\n\n# 2 O\nx\tO\n \t\n\n#tag\tO\n"
    data = read_tagging(write(tmp_path / "a.tsv", text))
    assert data.words == [["#", "New York"], ["x"], ["#tag"]]
    spaces = read_tagging(write(tmp_path / "b.txt", "# O\n a  O \n\nb O"))  # "#" reads as a word
    assert spaces.words == [["#", "a"], ["b"]]
    with gzip.open(tmp_path / "c.conll.gz", "wt") as f:
        f.write("a B-X\r\n\r\nb I-X\r\n")
    with pytest.raises(DataError, match='c.conll.gz, line 3: "I-X" after "O"'):
        read_tagging(tmp_path / "c.conll.gz")


def test_conllu(tmp_path):
    text = (
        "# sent_id = 1\n# text = vámonos\n1-2\tvámonos\t_\t_\n1\tvamos\tir\tVERB\n"
        "2\tnos\tnosotros\tPRON\n2.1\tx\t_\t_\n"
    )
    data = read_tagging(write(tmp_path / "a.conllu", text), word_column=1, tag_column=3)
    assert data.words == [["vamos", "nos"]] and data.tag_names(0) == ["VERB", "PRON"]
    assert (data.report.read, data.report.dropped) == (4, {SPLIT_TOKENS: 2})


def test_label_set_of_another_file(tmp_path):
    names = ("O", "B-PER", "I-PER")
    quiet = read_tagging(write(tmp_path / "a.txt", "a O\nb O\n"), names=names)
    assert quiet.scheme == "BIO" and quiet.names == names and quiet.tags == [[0, 0]]
    iob1 = read_tagging(write(tmp_path / "b.txt", "a I-PER\n"), names=names)
    assert iob1.tags == [[1]] and iob1.notes
    with pytest.raises(DataError, match='c.txt, line 3: tag "B-PERS" is not among the 3 labels O, '
                       'B-PER, I-PER; did you mean "B-PER"?'):  # fmt: skip
        read_tagging(write(tmp_path / "c.txt", "a O\n\nb B-PERS\n"), names=names)
    with pytest.raises(DataError, match='tag "XYZ" is not .*; correct the tag, or add it'):
        read_tagging(write(tmp_path / "c.txt", "a XYZ\n"), names=("NOUN",))
    full = ("O", "B-X", "I-X", "E-X", "S-X")
    with pytest.raises(DataError, match="d.txt, line 1: the end after .*IOBES"):
        read_tagging(write(tmp_path / "d.txt", "a B-X\n"), names=full)
    iobes = read_tagging(write(tmp_path / "e.txt", "a S-X\nb O\n"), names=full)
    assert iobes.scheme == "IOBES" and iobes.tags == [[4, 0]]


def test_json_lines(tmp_path):
    rows = [
        {"tokens": ["EU", "rejects"], "ner_tags": [1, 0]},
        {"tokens": ["x"], "ner_tags": [2], "id": "7"},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(DataError, match='a.jsonl, line 1, word 1: "ner_tags" holds the number 1'):
        read_tagging(path)
    data = read_tagging(path, names=("O", "B-ORG", "B-PER"))
    assert data.words == [["EU", "rejects"], ["x"]] and data.tags == [[1, 0], [2]]
    assert data.where(1) == f"{path}, line 2" and data.lines is None
    with pytest.raises(DataError, match='line 2, word 1: "ner_tags" holds 2, but .* are 0 to 1'):
        read_tagging(path, names=("O", "B-ORG"))

    text = '{"words": ["a", "b"], "labels": ["X", "Y"]}\n'
    data = read_tagging(write(tmp_path / "b.jsonl", text))
    assert data.names == ("X", "Y") and data.scheme == "plain"
    text = '{"w": ["a", "b"], "t": ["X", "Y"]}\n'
    data = read_tagging(write(tmp_path / "c.jsonl", text), word_column="w", tag_column="t")
    assert data.tags == [[0, 1]]


def test_class_names_of_a_data_set(monkeypatch):
    """The numbers of a TFDS column are those of its own ClassLabel, whatever label set is asked."""
    rows = [{"tokens": ["EU", "x"], "ner": [2, 0]}]
    origin = Origin("conll:train", range(1), "example")
    table = Table(rows, ("tokens", "ner"), origin, {"ner": ("O", "I-ORG", "B-ORG")})
    monkeypatch.setattr(sentences, "read_table", lambda name: table)
    assert read_tagging("tfds:conll").tags == [[1, 0]]
    data = read_tagging("tfds:conll", names=("O", "B-PER", "I-PER", "B-ORG", "I-ORG"))
    assert data.tags == [[3, 0]] and data.where(0) == "conll:train, example 0"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no sentences; give a file with a word and its tag on each line"),
        ("\n# only\n\n", {}, "no sentences"),
        ("word\n", {}, "line 1: 1 column, but the word is taken from column 0 and the tag from "
         "column -1"),
        ("a O\nb\n", {}, "line 2: 1 column, but"),
        ("a x O\n\nb O\n", {}, "line 3: 2 columns where the first word of the file has 3"),
        ("a O\nb O O\n", {}, "line 2: 3 columns where"),
        ("a O\n# no comment here\n", {}, "line 2: 4 columns where"),
        ("a O\n", {"tag_column": 2}, "line 1: 2 columns, but .* tag from column 2"),
        ("a O\n", {"tag_column": "ner"}, 'tag_column="ner" names a field, but a CoNLL-style'),
        ("a\tO\n\tO\n", {}, "line 2: the word is empty"),
        ("a\tO\nb\t\n", {}, "line 2: the tag is empty"),
        ("a O\nb I-PER\nc B-LOC\n", {}, 'line 2: "I-PER" after "O" continues no entity'),
        ("a O\nb I-PER\n", {"scheme": "BIO"}, 'line 2: "I-PER" after "O" .*write "B-PER", or read '
         'the file with scheme="IOB1"'),
        ("a O\n\nb B-PER\n", {"scheme": "IOB1"}, 'line 3: "B-PER" after "O" does not divide'),
        ("a B-PER\nb PER\n", {}, 'line 2: tag "PER" has none of the prefixes'),
        ("a O\n", {"scheme": "IOB3"}, 'scheme="IOB3" is unknown'),
    ],
)  # fmt: skip
def test_bad_conll(tmp_path, text, options, message):
    path = write(tmp_path / "a.conll", text)
    with pytest.raises(DataError, match=message) as caught:
        read_tagging(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or "=" in message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', 'line 2: 2 in "tokens" but 1 in "tags"'),
        ('{"tokens": [], "tags": []}', "line 2: an empty sentence; remove the row"),
        ('{"tokens": ["a"]}', 'line 2: no field "tags"; it has tokens'),
        ('{"tokens": "a b", "tags": ["O"]}', 'line 2: "tokens" holds a str, not a list'),
        ('{"tokens": ["a"], "tags": "O"}', 'line 2: "tags" holds a str, not a list'),
        ('{"tokens": [""], "tags": ["O"]}', "line 2, word 1: \"tokens\" holds ''"),
        ('{"tokens": [3], "tags": ["O"]}', 'line 2, word 1: "tokens" holds 3'),
        ('{"tokens": ["a"], "tags": [null]}', 'line 2, word 1: "tags" holds None'),
        ('{"tokens": ["a"], "tags": ["I-X"]}', 'line 2, word 1: "I-X" after "O"'),
        ('{"tokens": ["a"], "tags": ["O"]', "line 2: not valid JSON"),
    ],
)
def test_bad_json_lines(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", f'{{"tokens": ["a"], "tags": ["B-X"]}}\n{row}\n')
    with pytest.raises(DataError, match=message) as caught:
        read_tagging(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing(tmp_path):
    with pytest.raises(DataError, match="nothere.conll: no such file"):
        read_tagging(tmp_path / "nothere.conll")
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    with pytest.raises(DataError, match='no column "tokens"; it has text'):
        read_tagging(path)
    with pytest.raises(DataError, match='no column "x"'):
        read_tagging(path, word_column="x")
