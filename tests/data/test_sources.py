"""Files and data sets as sources, and what broken ones get."""

import gzip
import sys

import pytest

from fmjax.core.errors import DataError
from fmjax.data import JsonlSource, TextSource, TfdsSource, build_text_dataset
from fmjax.data.sources import text_of

DOCUMENTS = "first line\nsecond é line\n\n \n\nnext document\r\n\r\nlast\n"


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("document", ["first line\nsecond é line", "next document", "last"]),
        ("line", ["first line", "second é line", "next document", "last"]),
        ("file", [DOCUMENTS.replace("\r\n", "\n")]),
    ],
)
def test_text(tmp_path, name, by, expected):
    source = TextSource(write(tmp_path / name, DOCUMENTS), by=by)
    assert [source[i]["text"] for i in range(len(source))] == expected


def test_text_files_in_order(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.txt", name)
    source = TextSource(str(tmp_path / "*.txt"))
    assert [source[i]["text"] for i in range(3)] == ["a", "b", "c"]
    source = TextSource([tmp_path / "c.txt", str(tmp_path / "a.txt")])
    assert [source[i]["text"] for i in range(2)] == ["c", "a"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "a.txt", "a.txt: no such file"),
        (b"", "a.txt", "a.txt: no document with text"),
        (b"\n \n", "a.txt", "a.txt: no document with text"),
        (b"fine\nbad \xff\n", "a.txt", "a.txt, line 2: not UTF-8 .byte 0xff.; convert"),
        (b"\x1f\x8bnot gzip at all", "a.txt.gz", "a.txt.gz: broken gzip file"),
        (gzip.compress(b"x" * 5000, mtime=0)[:-12], "a.txt.gz", "a.txt.gz: broken gzip file"),
    ],
)
def test_bad_text(tmp_path, content, name, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        TextSource(tmp_path / name)


def test_bad_arguments(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match='by="word" is unknown'):
        TextSource(path, by="word")
    with pytest.raises(DataError, match="is a directory; name its files"):
        TextSource(tmp_path)
    with pytest.raises(DataError, match="an empty list of files"):
        TextSource([])


def test_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", '{"body": "x\\ny", "n": 1}\n\n{"body": "é", "n": 2}\n')
    source = JsonlSource(path)
    assert len(source) == 2 and source[1] == {"body": "é", "n": 2}
    assert JsonlSource(path, {"text": "body"})[0] == {"text": "x\ny"}


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("", None, "a.jsonl: no lines"),
        ('{"a": 1}\n{"a": \n', None, "a.jsonl, line 2: not valid JSON"),
        ('{"a": 1}\n\n[1]\n', None, "a.jsonl, line 3: a JSON list, not an object"),
        ('{"a": 1}\n{"b": 1}', {"text": "a"}, 'a.jsonl, line 2: no field "a"; it has b'),
    ],
)
def test_bad_jsonl(tmp_path, content, fields, message):
    write(tmp_path / "a.jsonl", content)
    with pytest.raises(DataError, match=message):
        JsonlSource(tmp_path / "a.jsonl", fields)


def test_text_of():
    assert text_of("x", "text", 0) == "x"
    assert text_of({"body": "y"}, "body", 0) == "y"
    with pytest.raises(DataError, match='example 7 has no text in field "text" .it has body'):
        text_of({"body": "y"}, "text", 7)
    with pytest.raises(DataError, match='example 1 has no text in field "text" .it has a int'):
        text_of(3, "text", 1)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A data set of 20 documents, built without TensorFlow."""
    texts = [f"document é {i}\n\nwith two paragraphs" for i in range(20)]
    return build_text_dataset(
        texts, tmp_path_factory.mktemp("tfds"), name="tiny_text", validation_fraction=0.2
    )


def test_tfds(tfds_dir):
    assert tfds_dir.parts[-2:] == ("tiny_text", "1.0.0")
    train, validation = TfdsSource(tfds_dir), TfdsSource(str(tfds_dir), "validation")
    assert (len(train), len(validation)) == (16, 4)
    everything = {s[i]["text"] for s in (train, validation) for i in range(len(s))}
    assert everything == {f"document é {i}\n\nwith two paragraphs" for i in range(20)}
    assert len(TfdsSource(tfds_dir, "train[:50%]")) == 8
    named = TfdsSource("tiny_text", "validation", data_dir=tfds_dir.parent.parent)
    assert [named[i] for i in range(4)] == [validation[i] for i in range(4)]
    assert set(TfdsSource(tfds_dir, fields={"body": "text"})[0]) == {"body"}
    assert "array_record" in {p.name.split("-")[1].split(".")[-1] for p in tfds_dir.glob("*-of-*")}
    assert "tensorflow" not in sys.modules


def test_tfds_opens_in_tfds_itself(tfds_dir):
    import tensorflow_datasets as tfds

    data = tfds.builder_from_directory(str(tfds_dir)).as_data_source(split="train")
    assert len(data) == 16 and isinstance(data[0]["text"], bytes)
    assert "tensorflow" not in sys.modules


def test_bad_tfds(tfds_dir, tmp_path):
    with pytest.raises(DataError, match='"no_such_set", split "train": .*check the name'):
        TfdsSource("no_such_set", data_dir=tmp_path)
    with pytest.raises(DataError, match='split "test": Unknown split'):
        TfdsSource(tfds_dir, "test")
    with pytest.raises(DataError, match="no dataset_info.json there"):
        TfdsSource(tmp_path)
    with pytest.raises(DataError, match='has no feature "body"; it has text'):
        TfdsSource(tfds_dir, fields={"text": "body"})
    with pytest.raises(DataError, match="exists already"):
        build_text_dataset(["x"], tfds_dir.parent.parent, name="tiny_text")
    with pytest.raises(DataError, match='"Bad Name" cannot name'):
        build_text_dataset(["x"], tmp_path, name="Bad Name")
    with pytest.raises(DataError, match="empty corpus"):
        build_text_dataset([""], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        build_text_dataset(["x"], tmp_path / "file")
