"""Bad input to the task commands: one line that names the thing and the remedy, nothing left."""

import json
import shutil

import pytest

from fmjax.cli.main import main


@pytest.fixture
def out(tmp_path):
    """Where a run would be, which a failing one leaves alone."""
    path = tmp_path / "run"
    yield path
    assert not path.exists()


@pytest.fixture
def line(arguments, encoder, files, out):
    """The command line of a run; other files by name."""

    def make(task="classification", *flags, train=None, model=encoder):
        return arguments(task, model, train or files[task], out, *flags)

    return make


def test_rows_that_cannot_be_used(line, fails, write, reviews, tmp_path):
    file = tmp_path / "x.jsonl"
    fails(line(train=tmp_path / "no.tsv"), "no.tsv: no such file", ".tsv, .csv, .jsonl")
    fails(line("classification", "--label-column sentiment"), "classification.jsonl",
          'no column "sentiment"', "text, label")  # fmt: skip
    write(file, [*reviews, {"text": "", "label": "good"}])
    fails(line(train=file), "x.jsonl, line 37", "empty", "remove the row")
    write(file, [*reviews, {"text": "a king", "label": None}])
    fails(line(train=file), "x.jsonl, line 37", "label", "empty")
    file.write_text(json.dumps(reviews[0]) + '\n{"text": "a\n')
    fails(line(train=file), "x.jsonl, line 2: not valid JSON")
    write(file, reviews[:18])
    fails(line(train=file), "only one class", "at least two classes")
    file = tmp_path / "x.tsv"
    file.write_text("text\tlabel\na king\tgood\na river\n")
    fails(line(train=file), "x.tsv, line 3: 1 fields where the header has 2")


def test_a_label_that_training_does_not_have(line, fails, write, reviews, tmp_path):
    valid = write(tmp_path / "v.jsonl", [reviews[0], {"text": "x", "label": "Bad"}])
    fails(line("classification", f"--valid {valid}"), "v.jsonl, line 2", '"Bad"', "bad, good",
          'did you mean "bad"?')  # fmt: skip


def test_numbers_that_are_none(line, fails, write, tmp_path):
    file = write(tmp_path / "x.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": "two"}])
    fails(line("classification", "--problem regression", train=file), "x.jsonl, line 2", '"two"')


def test_tags_that_break_their_scheme(line, fails, verses, write, tmp_path):
    broken = [*verses, {"tokens": ["to", "bethel"], "tags": ["O", "I-LOC"]}]
    file = write(tmp_path / "x.jsonl", broken)
    fails(line("tagging", train=file), "x.jsonl, line 25, word 2", "I-LOC", "B-LOC")
    fails(line("tagging", "--scheme IOX"), "IOX", "BIO, IOB1, IOBES, plain")
    fails(line("tagging", "--text-column nosuch"), "nosuch")
    fails(line("tagging", "--label-column 7"), "7")
    fails(line("tagging", "--epochs nan"), "--epochs must be more than 0")
    fails(line("tagging", "--learning-rate nan"), "learning rate nan must be a number")
    write(file, [{"tokens": ["to", "bethel"], "tags": ["O"]}])
    fails(line("tagging", train=file), "x.jsonl, line 1", "one tag")
    valid = write(tmp_path / "v.jsonl", [{"tokens": ["x"], "tags": ["B-DAY"]}])
    fails(line("tagging", f"--valid {valid}"), "v.jsonl, line 1", "B-DAY", "B-PER")


def test_an_answer_that_is_elsewhere(line, fails, questions, write, tmp_path):
    answers = {"text": ["bethel"], "answer_start": [3]}
    file = write(tmp_path / "x.jsonl", [*questions, questions[0] | {"answers": answers}])
    fails(line("qa", train=file), "x.jsonl, line 25", "answer_start=3", "correct answer_start")


def test_pairs_that_cannot_be_used(line, fails, pairs, write, tmp_path):
    fails(line("embedding", "--pair-column second"), "second", "anchor, positive, negative")
    fails(line("embedding", "--label-column score"), 'no column "score"')
    rows = [{"first": row["anchor"], "other": row["positive"]} for row in pairs]
    file = write(tmp_path / "x.jsonl", rows)
    fails(line("embedding", train=file), "first, other", "--text-column", "--pair-column")
    scored = [{"anchor": "a", "positive": "b", "score": 9.0} for _ in range(9)]
    file = write(tmp_path / "x.jsonl", [*scored, {"anchor": "a", "positive": "b", "score": -1}])
    fails(line("embedding", "--label-column score", train=file), "x.jsonl, line 10", "-1")


def test_settings_that_do_not_go_together(line, fails, write, reviews, tmp_path):
    several = write(tmp_path / "x.jsonl", reviews)
    fails(line("classification", "--problem multi --balance", train=several), "--balance")
    fails(line("tagging", "--balance"), "--balance")
    fails(line("qa", "--label-smoothing 0.1"), "--label-smoothing")
    fails(line("embedding", "--batch-size 16 --accumulate 2"), "--accumulate")


def test_a_metric_that_is_not_measured(line, fails):
    fails(line("classification", "--metric f2"), "'f2'", "accuracy", "macro_f1", "loss")
    fails(line("qa", "--metric accuracy"), "'accuracy'", "exact_match")


def test_numbers_out_of_range(line, fails):
    fails(line("classification", "--batch-size 6"), "--batch-size", "multiple of 8")
    fails(line("classification", "--accumulate 3"), "accumulate=3", "multiple of 24")
    fails(line("classification", "--accumulate 0"), "--accumulate 0 must be at least 1")
    fails(line("classification", "--steps -1"), "--steps 0 or more")
    fails(line("classification", "--patience -1"), "--patience -1")
    fails(line("classification", "--warmup-fraction 2"), "--warmup-fraction 2")
    fails(line("classification", "--valid-fraction 1"), "--valid-fraction 1.0", "between 0 and 1")
    fails(line("classification", "--max-length 2"), "max", "2")
    fails(line("classification", "--label-smoothing 1.5"), "smoothing", "1.5")
    fails(line("classification", "--method lora --rank 0"), "rank 0")
    fails(line("classification", "--method lora --targets c_attn"), "c_attn", "query")


def test_models_that_are_none(line, fails, encoder, files, tmp_path):
    fails(line(model=tmp_path / "no"), "no: no such directory")
    broken = shutil.copytree(encoder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails(line(model=broken), "model.safetensors")
    for command in ("predict", "embed"):
        words = [command, "--model", tmp_path / "no", "--input", files["classification"]]
        words += ["--output", tmp_path / "x.npy"]
        fails(words, "no: no such directory")


def test_a_run_directory_that_is_a_file(arguments, encoder, files, fails, tmp_path):
    (tmp_path / "mine").write_text("mine")
    words = arguments("classification", encoder, files["classification"], tmp_path / "mine")
    fails(words, "mine is a file", "directory")
    assert (tmp_path / "mine").read_text() == "mine"


def test_where_the_metric_is_never_finite_the_last_state_is_kept(
    arguments, encoder, write, capsys, tmp_path
):
    rows = [{"text": f"{i} kings", "label": i} for i in range(9)]
    train = write(tmp_path / "x.jsonl", rows)
    valid = write(tmp_path / "v.jsonl", [{"text": "a river", "label": 1}] * 3)
    flags = f"--problem regression --valid {valid}"
    assert main(arguments("classification", encoder, train, tmp_path / "run", flags)) == 0
    out = capsys.readouterr().out
    assert "note: spearman was never a finite number; the last state is kept" in out
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["best_step"] is None and content["metrics"]["spearman"] is None
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "trained (100.00%), after step 3." in page
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_models_without_a_task(encoder, trained, files, fails):
    words = ["predict", "--input", files["classification"], "--model"]
    fails([*words, encoder], "masked-lm", "fmjax finetune --task", "fmjax embed")
    fails([*words, trained("embedding") / "model"], "has no head", "fmjax embed")


def test_inputs_that_cannot_be_answered(trained, files, write, fails, monkeypatch, tmp_path):
    import io
    import sys

    words = ["predict", "--model", trained("classification") / "model", "--input"]
    fails([*words, tmp_path / "no.jsonl"], "no.jsonl: no such file")
    fails([*words, files["qa"]], "qa.jsonl", 'no column "text"', "question, context")
    fails([*words, files["qa"], "--text-column", "question", "--pair-column", "x"], '"x"')
    fails([*words, files["classification"], "--batch-size", 0], "--batch-size 0")
    fails([*words, files["classification"], "--batch-size", 6], "--batch-size", "multiple of 8")
    fails([*words, files["classification"], "--max-length", 2], "--max-length 2")
    fails([*words, files["classification"], "--threshold", 2], "--threshold 2")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    fails([*words, empty], "empty.txt", "a text a line")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    fails([*words, "-"], "standard input is empty")
    monkeypatch.setattr(sys, "stdin", io.StringIO('a king\n{"body": "a"}\n'))
    fails([*words, "-"], "standard input, line 2", 'no field "text"')
    questions = ["predict", "--model", trained("qa") / "model", "--input"]
    fails([*questions, files["classification"]], 'no column "question"', "text, label")
