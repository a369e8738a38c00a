"""`fmjax predict`: what it reads, what it answers, and that files appear whole."""

import csv
import gzip
import io
import json
import sys

import numpy as np
import pytest

from fmjax.cli.main import main


@pytest.fixture
def classifier(trained):
    return trained("classification") / "model"


@pytest.fixture
def said(classifier, capsys):
    """The lines that `fmjax predict` prints."""

    def run(source, *flags):
        capsys.readouterr()
        line = ["predict", "--model", classifier, "--input", source, *flags]
        assert main([str(word) for word in line]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_answers_are_beside_the_fields_of_the_input(predict, classifier, write, tmp_path):
    rows = [{"id": 7, "text": "the good king of saul", "more": [1, {"x": None}]}]
    (row,) = predict(classifier, write(tmp_path / "x.jsonl", rows))
    assert list(row) == ["id", "text", "more", "label", "score", "scores"]
    assert row["id"] == 7 and row["more"] == [1, {"x": None}]
    assert set(row["scores"]) == {"good", "bad"}
    assert sum(row["scores"].values()) == pytest.approx(1)
    assert row["score"] == max(row["scores"].values()) == row["scores"][row["label"]]


def test_every_kind_of_input_gives_the_same(said, write, reviews, monkeypatch, tmp_path):
    texts = [row["text"] for row in reviews[:9]] + ["one, with a comma"]
    expected = said(write(tmp_path / "x.jsonl", [{"text": text} for text in texts]))
    assert [row["text"] for row in expected] == texts
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    (tmp_path / "x.tsv").write_text("\n".join(["text", *texts]))
    (tmp_path / "x.txt").write_text("\n".join(texts) + "\n\n")
    with gzip.open(tmp_path / "x.txt.gz", "wt") as file:
        file.write("\n".join(texts))
    for name in ("x.csv", "x.tsv", "x.txt", "x.txt.gz"):
        assert said(tmp_path / name) == expected, name
    lines = [texts[0], json.dumps({"text": texts[1]}), "", *texts[2:]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert said("-") == expected


def test_fields_called_as_the_answer_stay_beside_it(predict, classifier, write, tmp_path):
    rows = [{"text": "the good king of saul", "label": "mine", "score": 1}]
    (row,) = predict(classifier, write(tmp_path / "x.jsonl", rows))
    assert (row["given_label"], row["given_score"]) == ("mine", 1)
    assert row["label"] in ("good", "bad") and row["score"] < 1


def test_standard_input_is_utf8(said, fails, classifier, monkeypatch):
    for data in (b'\xef\xbb\xbf{"text": "caf\xc3\xa9"}\n', "café\r\n".encode()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
        assert [row["text"] for row in said("-")] == ["café"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\ncaf\xe9\n"), "ascii"))
    fails(["predict", "--model", classifier, "--input", "-"], "standard input, line 2: not UTF-8")


def test_half_a_character_is_named(fails, classifier, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n{"text": "cut \\ud83d"}\n')
    fails(["predict", "--model", classifier, "--input", file], "x.jsonl, line 2", "at place 4")


def test_another_column(predict, classifier, write, tmp_path):
    file = write(tmp_path / "x.jsonl", [{"body": "the evil king", "text": ""}])
    (row,) = predict(classifier, file, "--text-column", "body")
    assert row["body"] == "the evil king" and "label" in row


def test_order_is_kept_over_batches_of_unlike_lengths(said, write, monkeypatch, tmp_path):
    texts = [" ".join(["good", "evil"][i % 2 :] * (1 + 7 * i % 12)) for i in range(40)]
    file = write(tmp_path / "x.jsonl", [{"n": i, "text": text} for i, text in enumerate(texts)])
    small, large = said(file, "--batch-size", 8), said(file, "--batch-size", 64)
    assert [row["n"] for row in small] == list(range(40))
    ours, theirs = ([row["scores"]["good"] for row in rows] for rows in (small, large))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # One at a time is what a row's own answer is.
    for i in (0, 5, 39):
        (row,) = said(write(tmp_path / "y.jsonl", [{"text": texts[i]}]), "--batch-size", 8)
        assert row["scores"]["good"] == pytest.approx(ours[i], abs=1e-5)
    # More lines of standard input than are answered together.
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts * 2)))
    streamed = [row["scores"]["good"] for row in said("-", "--batch-size", 8)]
    np.testing.assert_allclose(streamed, ours * 2, atol=1e-5)


def test_long_texts_of_classifiers_are_cut(said, write, tmp_path):
    long = "the good king of saul and " + "river " * 200
    file = write(tmp_path / "x.jsonl", [{"text": long}, {"text": long + "evil"}])
    first, second = said(file)
    assert first["text"] == long and first["scores"] == second["scores"]


def test_an_output_appears_whole_or_not_at_all(classifier, write, fails, monkeypatch, tmp_path):
    out = tmp_path / "answers.jsonl"
    out.write_text("mine")
    line = ["predict", "--model", classifier, "--output", out, "--batch-size", 8]
    bad = write(tmp_path / "x.jsonl", [{"text": "a king"}, {"text": " "}])
    fails([*line, "--input", bad], "x.jsonl, line 2", "empty")
    # An error after the first rows are answered and written.
    rows = ["a king"] * 64 + ['{"text": ']
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(rows)))
    fails([*line, "--input", "-"], "standard input, line 65", "not valid JSON")
    assert out.read_text() == "mine"
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    good = write(tmp_path / "x.jsonl", [{"text": "a king"}])
    assert main([str(w) for w in [*line, "--input", good]]) == 0
    assert json.loads(out.read_text())["text"] == "a king"


def test_the_threshold_of_several_labels(encoder, finetune, predict, write, reviews, tmp_path):
    rows = [{"text": r["text"], "label": ["any", r["label"]]} for r in reviews]
    file = write(tmp_path / "x.jsonl", rows)
    run = finetune("classification", encoder, file, tmp_path / "run", "--problem multi")
    for threshold in (0.0, 0.5, 1.0):
        for row in predict(run / "model", file, "--threshold", threshold):
            assert row["label"] == [n for n, p in row["scores"].items() if p >= threshold]
            assert list(row["scores"]) == ["any", "bad", "good"]


def test_entities_cut_the_text(trained, predict, write, tmp_path):
    texts = [
        "Then DAVID went to “Bethel”.",
        "Saul, and Ruth—of Hebron!",
        "👍 then abner\twent to shiloh",
    ]
    file = write(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    rows = predict(trained("tagging") / "model", file)
    assert [row["text"] for row in rows] == texts
    found = [entity for row in rows for entity in row["entities"]]
    assert found
    for row in rows:
        for entity in row["entities"]:
            assert set(entity) == {"label", "score", "text", "start", "end"}
            assert entity["text"] == row["text"][entity["start"] : entity["end"]]
            assert entity["label"] in ("PER", "LOC") and 0 < entity["score"] <= 1


@pytest.mark.slow
def test_long_texts_are_tagged_in_windows(encoder, finetune, files, predict, write, tmp_path):
    flags = "--steps 60 --learning-rate 0.02"
    run = finetune("tagging", encoder, files["tagging"], tmp_path / "run", flags)
    text = "then david went to bethel . " * 20
    (row,) = predict(run / "model", write(tmp_path / "x.jsonl", [{"text": text}]))
    found = row["entities"]
    assert all(text[e["start"] : e["end"]] == e["text"] for e in found)
    assert found == sorted(found, key=lambda entity: entity["start"])
    # The model has 64 positions, which the first ten sentences fill.
    assert max(entity["start"] for entity in found) > len(text) / 2


def test_answers_cut_the_context(trained, predict, questions, write, tmp_path):
    model = trained("qa") / "model"
    rows = [{"question": q["question"], "context": q["context"]} for q in questions[:3]]
    rows.append({"question": "where ?", "context": "Ünser “Context”: " + "sword and river " * 60})
    file = write(tmp_path / "x.jsonl", rows)
    answers = predict(model, file)
    for row, given in zip(answers, rows, strict=True):
        assert list(row) == ["question", "context", "answer", "score", "start", "end"]
        assert row["context"] == given["context"]
        assert row["answer"] == row["context"][row["start"] : row["end"]] != ""
        assert 0 < row["score"] <= 1
    never = predict(model, file, "--null-threshold", -1e6)
    assert [row["answer"] for row in never] == [""] * 4
    assert {row["start"] for row in never} == {row["end"] for row in never} == {None}
    always = predict(model, file, "--null-threshold", 1e6)
    assert [row["answer"] for row in always] == [row["answer"] for row in answers]


@pytest.mark.slow
def test_questions_are_learnt(encoder, finetune, files, predict, questions, tmp_path):
    flags = "--steps 60 --learning-rate 0.02 --max-length 48"
    run = finetune("qa", encoder, files["qa"], tmp_path / "run", flags)
    answers = predict(run / "model", files["qa"])
    right = [row["answer"] == q["answers"]["text"][0]
             for row, q in zip(answers, questions, strict=True)]  # fmt: skip
    assert np.mean(right) > 0.5
