"""Answers as tokens of windows, and the best spans out of logits."""

import json
import math

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from fmjax.core.errors import DataError
from fmjax.data import HFTokenizer, load_tokenizer
from fmjax.data.encoding import windows
from fmjax.data.tasks import answer_windows
from fmjax.data.tasks.answer_spans import best_spans
from fmjax.data.tasks.answer_windows import answer_tokens, question_features
from fmjax.data.tasks.questions import Questions, read_questions
from fmjax.data.tasks.tables import Report


def questions(*rows):
    """Rows of (question, context, [answers])."""
    answers = [[(a, context.index(a)) for a in found] for _, context, found in rows]
    n = len(rows)
    places = [f"x, line {i + 1}" for i in range(n)]
    return Questions(
        [f"q{i}" for i in range(n)], [q for q, _, _ in rows], [c for _, c, _ in rows], answers,
        places, Report(n),
    )  # fmt: skip


@pytest.fixture(scope="module")
def bert(texts):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return HFTokenizer(backend, {})


@pytest.fixture(scope="module")
def roberta(texts):
    """Offsets without the space in front of a word."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"]
        ),
    )
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), add_prefix_space=False
    )
    return HFTokenizer(backend, {})


@pytest.fixture(params=["bert", "roberta", "llama", "llama.model"])
def each(request, bert, roberta, spm_dir):
    if request.param == "llama.model":
        return load_tokenizer(spm_dir / "tokenizer.model")
    return {"bert": bert, "roberta": roberta, "llama": load_tokenizer(spm_dir)}[request.param]


def reference_positions(window, start, stop):
    """The loop of the run_qa example, for a window that holds tokens of the context."""
    first = window.sequence_ids.index(1)
    last = len(window) - 1 - window.sequence_ids[::-1].index(1)
    if not (window.offsets[first][0] <= start and window.offsets[last][1] >= stop):
        return 0, 0
    while first < len(window.offsets) and window.offsets[first][0] <= start:
        first += 1
    while window.offsets[last][1] >= stop:
        last -= 1
    return first - 1, last + 1


def test_answers_as_the_reference_places_them(each, texts):
    rng = np.random.default_rng(0)
    words = (texts[0] + " " + texts[3]).split()[:220]
    context = " ".join(words)
    rows = []
    for _ in range(30):
        i = int(rng.integers(0, len(words)))
        answer = " ".join(words[i : i + int(rng.integers(1, 6))]).strip(".,;:")
        rows.append((" Where was  it? ", context, [answer]))
    data = questions(*rows)
    got = question_features(data, each, max_length=80, stride=20)
    at, held = 0, 0
    for (question, _, _), answers in zip(rows, data.answers, strict=True):
        (text, start), whole = answers[0], 0
        for window in windows(each, question.lstrip(), context, 80, 20):
            feature = got.features[at]
            assert feature["input_ids"].tolist() == window.ids
            positions = feature["start_positions"], feature["end_positions"]
            assert positions == reference_positions(window, start, start + len(text))
            if positions != (0, 0):
                first, last = (window.offsets[p] for p in positions)
                assert context[first[0] : last[1]].strip(" .,;:") == text
                whole += 1
            at += 1
        held += whole
        assert whole  # 20 shared tokens are room enough for these answers
    assert at == len(got) == len(got.questions) and got.counts == {
        "windows": at, "windows with an answer": held, "answers whole in no window": 0,
    }  # fmt: skip


def test_chunks_do_not_show(bert, monkeypatch):
    data = questions(*[("who?", "God and " * n + "the earth", ["earth"]) for n in range(1, 12)])
    whole = question_features(data, bert, 16, 2)
    monkeypatch.setattr(answer_windows, "_CHUNK", 2)
    got = question_features(data, bert, 16, 2)
    assert got.questions == whole.questions and got.counts == whole.counts
    assert str(got.features) == str(whole.features) and len(got) > len(data)


def test_token_types(bert, roberta):
    data = questions(("who?", "God and the earth", ["God"]))
    feature = question_features(data, bert, 32, 4).features[0]
    assert feature["token_type_ids"][0] == 0 and feature["token_type_ids"][-1] == 1
    assert "token_type_ids" not in question_features(data, roberta, 32, 4).features[0]
    assert (
        "token_type_ids" not in question_features(data, bert, 32, 4, token_types=False).features[0]
    )
    bare = question_features(data, roberta, 32, 4, with_answers=False)
    assert set(bare.features[0]) == {"input_ids"}
    assert bare.counts["windows with an answer"] == bare.counts["answers whole in no window"] == 0


def test_an_answer_cut_by_every_window(bert):
    data = questions(
        ("who?", "a b c d e f g h i j k l", ["b c d e f g h i j k"]), ("why?", "a b", [])
    )
    got = question_features(data, bert, max_length=13, stride=2)
    assert got.counts["answers whole in no window"] == 1
    assert {(f["start_positions"], f["end_positions"]) for f in got.features} == {(0, 0)}


def test_answer_tokens():
    spans = np.array([(0, 3), (4, 6), (6, 7), (7, 7), (8, 9), (8, 9), (9, 12)])
    assert answer_tokens(spans, "abc", 0) == (0, 0)
    assert answer_tokens(spans, "ab", 4) == (1, 1)
    assert answer_tokens(spans, "abc d", 4) == (1, 5)
    assert answer_tokens(spans, "é", 8) == (4, 5)  # two byte tokens of one character
    assert answer_tokens(spans, "b", 5) == (1, 1)
    assert answer_tokens(spans, " ", 3) is None  # between tokens
    assert answer_tokens(spans, "abcd", 9) is None  # ends after the window
    assert answer_tokens(spans[1:], "abc ab", 0) is None
    assert answer_tokens(np.zeros((0, 2), int), "a", 0) is None


def brute_force(data, features, start_logits, end_logits, n_best, longest):
    """Every pair of tokens, one at a time."""
    out = []
    for number in range(len(data)):
        best = {}
        for w in range(len(features)):
            if features.questions[w] != number:
                continue
            first, n = features.contexts[w], len(features.offsets[w])
            for i in range(first, first + n):
                for j in range(first, first + n):
                    if not i <= j < i + longest:
                        continue
                    a, b = features.offsets[w][i - first], features.offsets[w][j - first]
                    texts = [data.contexts[number][x:y] for x, y in (a, b)]
                    if not all(t.strip() for t in texts):
                        continue
                    start = int(a[0]) + len(texts[0]) - len(texts[0].lstrip())
                    end = int(b[1]) - len(texts[1]) + len(texts[1].rstrip())
                    logit = float(start_logits[w][i]) + float(end_logits[w][j])
                    best[start, end] = max(logit, best.get((start, end), -math.inf))
        out.append(sorted(best.items(), key=lambda item: -item[1])[:n_best])
    return out


@pytest.mark.parametrize("n_best,longest", [(20, 6), (1, 1), (300, 30), (5, 400)])
def test_best_spans_are_the_best(each, texts, n_best, longest):
    data = questions(("who?", texts[1][:260], []), ("why so?", " God saw it ", []))
    features = question_features(data, each, max_length=60, stride=20)
    rng = np.random.default_rng(1)
    logits = [
        [rng.normal(size=len(f["input_ids"]) + 3).astype(np.float32) for f in features.features]
        for _ in range(2)
    ]
    got = best_spans(data, features, *logits, n_best=n_best, max_answer_length=longest)
    expected = brute_force(data, features, *logits, n_best, longest)
    for answer, spans in zip(got, expected, strict=True):
        number = int(answer.id[1:])
        assert len(answer.n_best) == len(spans)
        np.testing.assert_allclose(
            [s.logit for s in answer.n_best], [logit for _, logit in spans], rtol=1e-6
        )
        assert [(s.start, s.end) for s in answer.n_best] == [place for place, _ in spans]
        for span in answer.n_best:
            assert span.text == data.contexts[number][span.start : span.end] == span.text.strip()
        assert abs(sum(s.score for s in answer.n_best) - 1) < 1e-9
        top = answer.n_best[0]
        assert (answer.text, answer.start, answer.end) == (top.text, top.start, top.end)
        null = min(
            logits[0][w][0] + logits[1][w][0]
            for w in range(len(features))
            if features.questions[w] == number
        )
        assert answer.no_answer == pytest.approx(null - top.logit, abs=1e-5)


def test_by_hand(bert):
    """[CLS] who ? [SEP] a b c d [SEP], one token a word."""
    data = questions(("a?", "a b  c d", []))
    features = question_features(data, bert, 32, 4)
    assert len(features.features[0]["input_ids"]) == 9 and features.contexts == [4]
    #                [CLS] a  ?  [SEP] a  b  c  d  [SEP]
    start = np.array([1.0, 9, 9, 9, 0, 2, 0, 0, 9])
    end = np.array([1.5, 9, 9, 9, 3, 0, 1, 2, 9])
    answer = best_spans(data, features, [start], [end], n_best=3)[0]
    assert [(s.text, s.logit) for s in answer.n_best] == [("b  c d", 4), ("a", 3), ("b  c", 3)]
    weights = np.exp([4, 3, 3])
    np.testing.assert_allclose([s.score for s in answer.n_best], weights / weights.sum())
    assert (answer.text, answer.start, answer.end, answer.no_answer) == ("b  c d", 2, 8, -1.5)
    assert best_spans(data, features, [start], [end], max_answer_length=2)[0].text == "a"

    kept = best_spans(data, features, [start], [end], 3, null_threshold=0.0)[0]
    np.testing.assert_allclose(kept.score, np.exp(4) / (weights.sum() + np.exp(2.5)))
    refused = best_spans(data, features, [start], [end], 3, null_threshold=-2.0)[0]
    assert (refused.text, refused.start, refused.end) == ("", None, None)
    np.testing.assert_allclose(refused.score, np.exp(2.5) / (weights.sum() + np.exp(2.5)))
    assert refused.n_best == kept.n_best and refused.no_answer == -1.5
    start[0] = 2000
    certain = best_spans(data, features, [start], [end], 3, null_threshold=0.0)[0]
    assert certain.score == 1.0 and {s.score for s in certain.n_best} == {0.0}


def test_windows_share_one_ranking(bert):
    """The better window decides; no answer counts in the window where it is least likely."""
    data = questions(("a?", "a b c d e f", []))
    features = question_features(data, bert, max_length=9, stride=2)
    assert [len(offsets) for offsets in features.offsets] == [4, 4]
    start, end = np.zeros((2, 9)), np.zeros((2, 9))
    start[:, 0] = [5, 3]
    start[0, 6], end[0, 6] = 2, 2  # "c" in the first window
    start[1, 4], end[1, 4] = 3, 3  # "c" again in the second
    answer = best_spans(data, features, start, end, null_threshold=0.0)[0]
    assert answer.text == "c" and answer.n_best[0].logit == 6 and answer.no_answer == -3
    assert len({(s.start, s.end) for s in answer.n_best}) == len(answer.n_best)
    assert answer.n_best[0].score == max(s.score for s in answer.n_best)


def test_a_context_without_tokens(bert):
    data = questions(("a?", "\u200b", []))
    features = question_features(data, bert, 16, 4)
    assert features.counts["windows"] == 1 and len(features.offsets[0]) == 0
    answer = best_spans(data, features, [np.zeros(5)], [np.zeros(5)])[0]
    assert (answer.text, answer.start, answer.score, answer.n_best) == ("", None, 1.0, [])


def test_from_file_to_answer(tmp_path, bert):
    """What a model that has learnt the labels says is what the file says."""
    context = "In the beginning God created the heaven and the earth. " * 4 + "The end is near."
    rows = [
        {"question": "What?", "context": context,
         "answers": {"text": ["end is near"], "answer_start": [context.index("end is near")]}},
        {"question": "What not?", "context": context, "answers": {"text": [], "answer_start": []}},
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read_questions(tmp_path / "a.jsonl")
    features = question_features(data, bert, max_length=48, stride=16)
    assert len(features) > 4
    logits = {
        key: [9.0 * np.eye(len(f["input_ids"]))[f[key]] for f in features.features]
        for key in ("start_positions", "end_positions")
    }
    answers = best_spans(data, features, *logits.values(), null_threshold=0.0)
    assert [a.text for a in answers] == ["end is near", ""]
    assert answers[0].start == context.index("end is near")


def test_refusals(bert):
    data = questions(("a?", "a b c d e f", ["c"]))
    with pytest.raises(DataError, match="^x, line 1: the question and the special tokens take 5"):
        question_features(data, bert, max_length=7, stride=2)
    features = question_features(data, bert, 32, 4)
    good = [np.zeros(11)]
    with pytest.raises(DataError, match="start logits of 0 windows for 1"):
        best_spans(data, features, [], good)
    with pytest.raises(DataError, match="window 0 has 11 tokens but end logits of 10"):
        best_spans(data, features, good, [np.zeros(10)])
    with pytest.raises(DataError, match="n_best=0 and max_answer_length=30 must be at least 1"):
        best_spans(data, features, good, good, n_best=0)
    with pytest.raises(DataError, match="max_answer_length=0"):
        best_spans(data, features, good, good, max_answer_length=0)
