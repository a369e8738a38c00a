"""`fmjax eval --test`: a fine-tuned model on a file with labels."""

import json

import pytest

from fmjax.cli.main import main

FIGURES = {
    "classification": {"accuracy", "macro_f1", "f1/good"},
    "tagging": {"f1", "precision", "f1/PER"},
    "qa": {"exact_match", "f1"},
}


def measured(capsys, *words) -> dict:
    capsys.readouterr()
    assert main([str(word) for word in ("eval", *words, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", FIGURES)
def test_figures(task, trained, files, capsys):
    model = trained(task) / "model"
    flags = ("--max-length", "32", "--batch-size", "8")
    found = measured(capsys, "--model", model, "--test", files[task], *flags)
    assert found["metrics"].keys() >= FIGURES[task]
    for name, (low, high) in found["intervals"].items():
        assert low <= found["metrics"][name] <= high
    assert main(["eval", "--model", str(model), "--test", str(files[task]), *flags]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out and f"{found['metrics'][min(FIGURES[task])]:.4f}" in out


def test_the_figures_are_those_that_the_answers_have(trained, files, predict, reviews, capsys):
    model = trained("classification") / "model"
    found = measured(capsys, "--model", model, "--test", files["classification"])
    rows = predict(model, files["classification"])
    right = [row["label"] == review["label"] for row, review in zip(rows, reviews, strict=True)]
    assert found["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))


def test_columns_and_labels(trained, tmp_path, write, fails, capsys, encoder):
    model = trained("classification") / "model"
    file = write(tmp_path / "x.jsonl", [{"said": "a wise king", "how": "good"}] * 3)
    found = measured(
        capsys, "--model", model, "--test", file, "--text-column", "said", "--label-column", "how"
    )
    assert found["metrics"]["support/good"] == 3
    fails(["eval", "--model", model, "--test", file], "x.jsonl", 'no column "text"', "said")
    odd = write(tmp_path / "odd.jsonl", [{"text": "a", "label": "fair"}])
    fails(["eval", "--model", model, "--test", odd], "odd.jsonl, line 1", '"fair"', "good")
    fails(["eval", "--model", encoder, "--test", file], "masked-lm", "fmjax finetune --task")


def test_questions_without_an_answer_may_be_given_none(
    trained, questions, write, predict, tmp_path, capsys
):
    """By SQuAD 2.0's rule, as in training, though the model learnt from answered ones alone."""
    model = trained("qa") / "model"
    none = {"answers": {"text": [], "answer_start": []}}
    file = write(tmp_path / "x.jsonl", [q | none if i % 2 else q for i, q in enumerate(questions)])
    flags = ("--max-length", "32")
    found = measured(capsys, "--model", model, "--test", file, *flags)["metrics"]
    said = predict(model, file, *flags, "--null-threshold", "0")
    empty = [row["answer"] == "" for row in said[1::2]]
    assert found["no_answer_exact_match"] == pytest.approx(sum(empty) / len(empty))
