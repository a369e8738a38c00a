"""Texts as token ids, cut texts counted, through to batches."""

import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from fmjax.core.errors import DataError
from fmjax.data import load_tokenizer
from fmjax.data.tasks import (
    classification_features,
    pair_features,
    read_classification,
    read_pairs,
    task_batches,
    text_features,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]
CLS, SEP, A, B, C, D = range(2, 8)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT-like tokenizer of four words, with types."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    directory = tmp_path_factory.mktemp("bert")
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return load_tokenizer(directory)


def table(path, header, *rows):
    path = path / "a.tsv"
    path.write_text("\n".join("\t".join(row) for row in (header, *rows)))
    return path


def test_texts_and_how_many_were_cut(bert):
    features = text_features(["a b", "a b c", "a b c d", "d"], bert, max_length=5)
    assert [f["input_ids"] for f in features] == [
        [CLS, A, B, SEP], [CLS, A, B, C, SEP], [CLS, A, B, C, SEP], [CLS, D, SEP],
    ]  # fmt: skip
    assert set(features[0]) == {"input_ids"}
    assert (features.texts, features.truncated) == (4, 1)
    assert str(features) == "1 of 4 texts were cut at 5 tokens"
    assert str(text_features(["a"], bert, 5)) == "1 texts, none longer than 5 tokens"


def test_pairs_of_texts_have_types(bert, tokenizer):
    features = text_features(["a b", "a"], bert, 6, ["c", "b c d"])
    assert features[0] == {
        "input_ids": [CLS, A, B, SEP, C, SEP], "token_type_ids": [0, 0, 0, 0, 1, 1],
    }  # fmt: skip
    assert features[1]["input_ids"] == [CLS, A, SEP, B, C, SEP] and features.truncated == 1
    assert set(text_features(["a"], bert, 6, ["b"], token_types=False)[0]) == {"input_ids"}
    assert set(text_features(["God"], tokenizer, 9, ["earth"])[0]) == {"input_ids"}


def test_more_texts_than_are_encoded_at_a_time(bert, monkeypatch):
    texts = ["a b c", "b", "c d"]
    expected = text_features(texts, bert, 4, texts)
    monkeypatch.setattr("fmjax.data.tasks.features._CHUNK", 2)
    assert text_features(texts, bert, 4, texts) == expected


def test_classification(bert, tmp_path):
    path = table(tmp_path, ("text", "label"), ("a b", "x"), ("c", "y"), ("d", "x"))
    features = classification_features(read_classification(path), bert, 8)
    assert [f["labels"] for f in features] == [0, 1, 0]
    batch = next(task_batches(features, 3, pad_id=bert.pad_token_id, shuffle=False))
    assert batch["input_ids"].tolist() == [[CLS, A, B, SEP], [CLS, C, SEP, 0], [CLS, D, SEP, 0]]
    assert batch["labels"].dtype == "int32"


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_float_labels(bert, tmp_path, problem):
    # As many classes as tokens: what a list of labels means must not depend on its length.
    path = table(tmp_path, ("text", "label"), ("a", "1"), ("b c", "2"), ("d", "3"))
    data = read_classification(path, problem_type=problem)
    batch = next(task_batches(classification_features(data, bert, 8), 3, pad_id=0, shuffle=False))
    expected = {
        "multi_label_classification": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "regression": [1, 2, 3],
    }
    assert batch["labels"].tolist() == expected[problem] and batch["labels"].dtype == "float32"


def test_embedding_pairs(bert, tmp_path):
    header = ("anchor", "positive", "negative")
    path = table(tmp_path, header, ("a", "b c d", "c"), ("b", "c", "d"))
    features = pair_features(read_pairs(path), bert, 4)
    assert (features.texts, features.truncated) == (6, 1)
    batch = next(task_batches(features, 2, pad_id=0, shuffle=False))
    assert batch["input_ids"].tolist() == [
        [[CLS, A, SEP, 0], [CLS, B, C, SEP], [CLS, C, SEP, 0]],
        [[CLS, B, SEP, 0], [CLS, C, SEP, 0], [CLS, D, SEP, 0]],
    ]
    assert "labels" not in batch and batch["attention_mask"].shape == (2, 3, 4)
    path = table(tmp_path, ("sentence1", "sentence2", "score"), ("a", "b", "5"), ("c", "d", "1"))
    batch = next(task_batches(pair_features(read_pairs(path), bert, 4), 2, pad_id=0, shuffle=False))
    assert batch["input_ids"].shape == (2, 2, 3)
    assert batch["labels"].tolist() == pytest.approx([1.0, 0.2])


def test_a_text_without_tokens(bert, tmp_path):
    with pytest.raises(DataError, match="text 1: the tokenizer makes no token"):
        text_features(["a", "\u200b"], bert, 4)
    path = table(tmp_path, ("text", "label"), ("a", "x"), ("\u200b", "y"))
    data = read_classification(path)
    with pytest.raises(DataError, match="a.tsv, line 3: the tokenizer makes no token"):
        classification_features(data, bert, 4)
    path = table(tmp_path, ("anchor", "positive"), ("a", "b"), ("a", "\u200b"))
    with pytest.raises(DataError, match="a.tsv, line 3: the tokenizer makes no token"):
        pair_features(read_pairs(path), bert, 4)
