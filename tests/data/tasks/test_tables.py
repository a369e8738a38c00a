"""Tables from files and data sets, and what broken ones get."""

import gzip

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.data import build_text_dataset
from fmjax.data.tasks import Report, read_table, split_of


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


CSV = '\ufefftext,label\r\n"two\r\nlines, ""quoted""",1\r\n\r\n é ,0\r\n'
TSV = 'text\tlabel\n"Oh," she said\t1\n"all of it"\t0\n\n"He said ""hi"""\t1\n'
QUOTED_TSV = '"text"\t"label"\n"tab\there\nand a ""line"""\t"1"\n"x"\t"0"\n'
JSONL = '{"text": "a\\nb", "label": 1}\n\n{"label": true, "text": "é", "more": [1]}\n'


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "content", "texts", "lines"),
    [
        ("csv", CSV, ['two\nlines, "quoted"', " é "], [2, 5]),
        ("tsv", TSV, ['"Oh," she said', '"all of it"', 'He said "hi"'], [2, 3, 5]),
        ("tsv", QUOTED_TSV, ['tab\there\nand a "line"', "x"], [2, 4]),
        ("jsonl", JSONL, ["a\nb", "é"], [1, 3]),
        ("ndjson", JSONL, ["a\nb", "é"], [1, 3]),
    ],
)
def test_files(tmp_path, suffix, kind, content, texts, lines):
    path = write(tmp_path / f"t.{kind}{suffix}", content)
    table = read_table(path, ["text", "label"])
    assert table.texts("text") == texts and len(table) == len(texts)
    assert [table.where(i) for i in range(len(table))] == [f"{path}, line {n}" for n in lines]
    assert table.columns[:2] == ("text", "label") and str(table.report).endswith("none left out")
    if "json" in kind:
        assert table.columns == ("text", "label", "more") and table.value(1, "label") is True


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, "a.csv: no such file; give a .tsv, .csv, .jsonl, .ndjson file"),
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv", "text,label\n", "a.csv: no rows after the header"),
        ("a.json", "[]", "a.json: cannot tell rows .*write one object a line as .jsonl"),
        ("a.txt", "x", "cannot tell rows from a .txt file; give a .tsv"),
        ("a.tsv", b"text\tlabel\nbad \xff\t1\n", "a.tsv, line 2: not UTF-8 .byte 0xff"),
        ("a.tsv.gz", b"\x1f\x8bnot gzip", "a.tsv.gz: broken gzip file"),
        ("a.csv", "text,text\nx,1\n", 'a.csv, line 1: the header names the column "text" twice'),
        ("a.csv", "text,\nx,1\n", "a.csv, line 1: the header has a column without a name"),
        ("a.csv", "text,label\nx,1\na, b,1\n", "line 3: 3 fields .* has 2 .text, label.; put quo"),
        ("a.csv", "text,label\n\nx\n", "a.csv, line 3: 1 fields where"),
        ("a.tsv", "text\tlabel\na\tb\t1\n", "a.tsv, line 2: 3 fields .* must not hold tabs"),
        ("a.csv", 'text,label\nx,1\n"y,0\nz,1\n', "a.csv, line 3: .*close the quotes"),
        ("a.csv", "sentence,label\nx,1\n", 'no column "text"; it has sentence, label; name one'),
        ("a.csv", "Text,label\nx,1\n", 'did you mean "Text"'),
        ("a.csv", "texts,label\nx,1\n", 'did you mean "texts"'),
        ("a.csv", "text;label\nx;1\n", "its header seems to be separated by ';'"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", "\n[1]\n", "a.jsonl, line 2: a JSON list, not an object"),
        ("a.jsonl", '{"body": "x"}\n', 'a.jsonl: no column "text"; it has body; name one of them'),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        read_table(tmp_path / name, ["text", "label"])
    assert "\n" not in str(error.value)


def test_long_texts_are_no_unclosed_quotes(tmp_path):
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'text,label\n"{long}",1\n')
    assert read_table(tmp_path / "a.csv").rows == [{"text": long, "label": "1"}]


def test_the_remedy_names_the_option(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"body": "x"}'))
    with pytest.raises(DataError, match="it has body; name one of them with --text-column$"):
        table.require("text", "--text-column")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": " ", "n": 1}', 'line 2: the text in column "text" is empty; fill it in'),
        ('{"text": null}', 'line 2: column "text" holds a null, not text'),
        ('{"text": 5}', 'line 2: column "text" holds a int, not text'),
        ('{"body": "x"}', 'line 2: no field "text"; it has body'),
    ],
)
def test_bad_texts(tmp_path, row, message):
    table = read_table(write(tmp_path / "a.jsonl", '{"text": "x"}\n' + row), ["text"])
    with pytest.raises(DataError, match=message):
        table.texts("text")


@pytest.mark.parametrize("content", ["text\tb\nx\t1\n\t\n", "text\tb\nx\t1\n \n\t2\n"])
def test_rows_of_nothing_are_no_blank_lines(tmp_path, content):
    table = read_table(write(tmp_path / "a.tsv", content))
    assert len(table) == 2
    with pytest.raises(DataError, match=f"line {content.count(chr(10))}: the text .* is empty"):
        table.texts("text")
    table = read_table(write(tmp_path / "a.csv", 'text\nx\n\n""\n'))
    with pytest.raises(DataError, match="a.csv, line 4: the text .* is empty"):
        table.texts("text")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tfds:imdb_reviews", ("tfds:imdb_reviews", None)),
        ("tfds:imdb_reviews:test", ("tfds:imdb_reviews", "test")),
        ("tfds:glue/sst2:1.0.0", ("tfds:glue/sst2:1.0.0", None)),
        ("tfds:glue/sst2:1.*.*:train[:10%]", ("tfds:glue/sst2:1.*.*", "train[:10%]")),
        ("movie_reviews:validation", ("movie_reviews", "validation")),
        ("a/b.tsv", ("a/b.tsv", None)),
    ],
)
def test_split_of(name, parts):
    assert split_of(name) == parts


def test_files_have_no_splits(tmp_path):
    path = write(tmp_path / "a.tsv", "text\nx\n")
    with pytest.raises(DataError, match="a.tsv is a file and has no splits; leave out :test"):
        read_table(f"{path}:test")
    odd = write(tmp_path / "a:b.tsv", "text\nx\n")
    assert read_table(odd).texts("text") == ["x"]


def test_movie_reviews():
    whole = read_table("movie_reviews:validation", ["text", "rating"])
    assert len(whole) == 400 and whole.report == Report(400)
    table = read_table("movie_reviews:validation", ["text", "label"])
    ratings = np.array([table.value(i, "rating") for i in range(len(table))])
    labels = [table.value(i, "label") for i in range(len(table))]
    assert labels == ["positive" if r > 0 else "negative" for r in ratings]
    assert np.abs(ratings).min() > 0.5
    left_out = sum(abs(e["rating"]) <= 0.5 for e in whole.rows)
    assert table.report.kept == len(table) and table.report.read == 400
    assert str(table.report) == (
        f"{400 - left_out} of 400 rows; left out: {left_out} rated neutral, from −0.5 to 0.5"
    )
    i = 100  # rows keep the number that they have in the corpus
    number = int(table.where(i).rpartition(" ")[2])
    assert table.where(i).startswith("movie_reviews:validation, example ")
    assert whole.rows[number]["text"] == table.rows[i]["text"]
    with pytest.raises(DataError, match='no split "test"'):
        read_table("movie_reviews:test")


def test_tfds_directory(tmp_path):
    path = build_text_dataset([f"é {i}" for i in range(10)], tmp_path, validation_fraction=0.2)
    table = read_table(f"{path}:validation", ["text"])
    assert len(table) == 2 and table.where(1) == f"{path}:validation, example 1"
    assert len(read_table(path)) == 8 and len(read_table(f"tfds:{path}:train[:4]")) == 4
    with pytest.raises(DataError, match='no column "label"; it has text'):
        read_table(path, ["label"])
    with pytest.raises(DataError, match='split "test": Unknown split'):
        read_table(f"{path}:test")
    with pytest.raises(DataError, match='"no_such_set_of_data", split "train"'):
        read_table("tfds:no_such_set_of_data")
