"""Text by name."""

import gzip
import json

import pytest

from fmjax.core.errors import DataError
from fmjax.data import build_text_dataset, load_corpus
from fmjax.recipes import Data
from fmjax.recipes.text import open_text, open_train_and_held_out, texts


def all_texts(source):
    return list(texts([source]))


def test_names(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"body": "four"}) + "\n")
    assert all_texts(open_text(str(tmp_path / "a.txt"))) == ["one", "two\nthree"]
    assert all_texts(open_text(str(tmp_path / "*.txt"), by="line")) == ["one", "two", "three"]
    assert all_texts(open_text(str(tmp_path / "b.jsonl.gz"), text_field="body")) == ["four"]
    assert open_text("kjv", "validation") == load_corpus("kjv", "validation")
    for name in ("nothing.txt", str(tmp_path), "tfds:no_such_dataset_anywhere"):
        with pytest.raises(DataError):
            open_text(name)


def test_tfds_directory(tmp_path):
    documents = [f"document {i}" for i in range(20)]
    directory = str(build_text_dataset(documents, tmp_path, validation_fraction=0.2))
    train, held_out = open_train_and_held_out(Data(data=(directory,)))
    found = all_texts(train[0]), all_texts(held_out[0])
    assert len(found[1]) == 4 and sorted(found[0] + found[1]) == sorted(documents)


def test_held_out_text(tmp_path, capsys):
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(f"document {i}" for i in range(40)))
    train, held_out = open_train_and_held_out(Data(data=("movie_reviews", str(file))))
    assert train[0] == load_corpus("movie_reviews", "train")
    assert held_out[0] == load_corpus("movie_reviews", "validation")
    assert (len(train[1]), len(held_out[1])) == (38, 2)
    assert capsys.readouterr().out == ""
    again = open_train_and_held_out(Data(data=(str(file),), eval_data=("kjv", str(file))))
    assert "a.txt are trained on and evaluated on" in capsys.readouterr().out
    open_train_and_held_out(Data(data=(str(tmp_path / "*.txt"), str(file))))
    assert "a.txt are trained on and evaluated on" in capsys.readouterr().out
    assert [len(source) for source in again[0]] == [40]
    assert [len(source) for source in again[1]] == [len(load_corpus("kjv", "validation")), 40]
    assert open_train_and_held_out(Data(data=(str(file),), eval_fraction=0.0))[1] == []
