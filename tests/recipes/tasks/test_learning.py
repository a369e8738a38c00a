"""What fine-tuning learns, when it ends, which state it keeps, and that it goes on where it was."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.cli.main import main
from fmjax.train.run import Run

pytestmark = pytest.mark.slow


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log(run) if "loss" in line]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


LEARN = "--learning-rate 0.02 --schedule constant --warmup-fraction 0"


def test_classes_that_one_word_tells_are_learnt(encoder, files, finetune, tmp_path):
    flags = "--learning-rate 0.02 --steps 30 --eval-every 10 --valid-fraction 0.2"
    run = finetune("classification", encoder, files["classification"], tmp_path / "run", flags)
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["metrics"]["accuracy"] == 1.0
    assert figures["intervals"]["accuracy"] == [1.0, 1.0]
    trained = losses(run)
    assert [step for step, _ in trained] == list(range(1, 31))
    assert trained[-1][1] < 0.2 * trained[0][1]


def test_early_stopping_keeps_the_best_state(encoder, files, finetune, tmp_path):
    """A run that ends at the best step exports the same weights."""
    flags = f"{LEARN} --steps 40 --eval-every 2 --patience 2 --metric accuracy"
    run = finetune("classification", encoder, files["classification"], tmp_path / "run", flags)
    found = {line["step"]: line["eval_accuracy"] for line in log(run) if "eval_accuracy" in line}
    best = json.loads((run / "metrics.json").read_text())["best_step"]
    assert max(found, key=found.get) == best  # the first of equal ones
    assert max(found) == best + 4 < 40
    kept = {int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best, best + 4}
    short = f"{LEARN} --steps {best} --eval-every 2"
    again = finetune("classification", encoder, files["classification"], tmp_path / "b", short)
    assert same(run, again)


@pytest.mark.parametrize(
    "flag", ["--layer-decay 0.5", "--balance", "--label-smoothing 0.2", "--clip-norm 0.01"]
)
def test_settings_change_the_run(encoder, finetune, write, reviews, flag, tmp_path):
    file = write(tmp_path / "x.jsonl", reviews[:26])  # 18 good, 8 bad
    runs = [
        finetune("classification", encoder, file, tmp_path / name, f"{LEARN} --seed 3 {more}")
        for name, more in (("a", ""), ("b", flag))
    ]
    assert not same(*runs)
    (_, first), (_, second) = (losses(run)[0] for run in runs)
    changes_loss = flag.split()[0] in ("--balance", "--label-smoothing")
    assert (first != second) == changes_loss


def test_lower_layers_move_less_with_layer_decay(encoder, files, finetune, tmp_path):
    before = load_file(encoder / "model.safetensors")
    moved = []
    for name, flag in (("a", ""), ("b", "--layer-decay 0.01")):
        flags = f"{LEARN} --steps 1 --weight-decay 0 {flag}"
        file = files["classification"]
        after = weights(finetune("classification", encoder, file, tmp_path / name, flags))
        names = (f"bert.encoder.layer.{i}.output.dense.weight" for i in range(2))
        moved.append([np.abs(after[name] - before[name]).max() for name in names])
    (low, high), (low_decayed, high_decayed) = moved
    assert low == pytest.approx(high, rel=0.05)
    assert low_decayed == pytest.approx(0.01 * high_decayed, rel=0.05)


def test_accumulation_is_the_same_update(encoder, files, finetune, tmp_path):
    flags = f"{LEARN} --batch-size 16 --steps 2"
    file = files["classification"]
    a = finetune("classification", encoder, file, tmp_path / "a", flags)
    b = finetune("classification", encoder, file, tmp_path / "b", flags, "--accumulate 2")
    np.testing.assert_allclose(losses(a), losses(b), rtol=1e-5)


def test_overlap_is_reported_and_removed_if_asked(encoder, finetune, write, reviews, capsys,
                                                  tmp_path):  # fmt: skip
    train, valid = write(tmp_path / "t.jsonl", reviews), write(tmp_path / "v.jsonl", reviews[:5])
    capsys.readouterr()
    finetune("classification", encoder, train, tmp_path / "a", f"--valid {valid}")
    out = capsys.readouterr().out
    assert "5 of 5 test rows are also in the training data (5 of its 36 rows)" in out
    assert "36 examples to train on, 5 to measure on" in out
    finetune("classification", encoder, train, tmp_path / "b", f"--valid {valid} --remove-overlap")
    assert "31 examples to train on, 5 to measure on" in capsys.readouterr().out
    assert "31 examples to train on" in (tmp_path / "b" / "report.html").read_text()


def test_every_class_is_held_out_in_proportion(encoder, finetune, write, reviews, tmp_path):
    rare = [{"text": f"a {noun}", "label": "other"} for noun in ("dove", "cloud")]
    file = write(tmp_path / "x.jsonl", [*reviews, *rare])
    flags = "--valid-fraction 0.25"
    run = finetune("classification", encoder, file, tmp_path / "run", flags)
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    shares = {name: metrics[f"support/{name}"] for name in ("good", "bad", "other")}
    assert shares["other"] == 1
    assert shares["good"] in (4, 5) and shares["bad"] in (4, 5)


def stop_after(monkeypatch, number: int) -> None:
    """SIGTERM to this process after a step."""
    advance = Run.advance

    def stopping(self) -> bool:
        more = advance(self)
        if self.number == number:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # for the handler
        return more

    monkeypatch.setattr(Run, "advance", stopping)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stopped_run_goes_on_to_the_same_end(
    encoder, files, finetune, arguments, method, monkeypatch, capsys, tmp_path
):
    flags = f"{LEARN} --steps 8 --eval-every 3 --method {method}"
    file = files["classification"]
    unbroken = finetune("classification", encoder, file, tmp_path / "a", flags)
    line = arguments("classification", encoder, file, tmp_path / "b", flags)
    stop_after(monkeypatch, 4)
    assert main(line) == 130
    assert "stopped after step 4; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "b" / "model").exists()
    monkeypatch.undo()
    assert main(line) == 0
    assert losses(tmp_path / "b") == losses(unbroken)
    assert [line.get("eval_accuracy") for line in log(tmp_path / "b")] == [
        line.get("eval_accuracy") for line in log(unbroken)
    ]
    assert same(tmp_path / "b", unbroken)


def test_a_run_does_not_go_on_from_another_model(
    encoder, trained, arguments, files, fails, tmp_path
):
    model, params = fmjax.from_pretrained(encoder)
    params = jax.tree.map(lambda x: -x, params)
    fmjax.save_pretrained(tmp_path / "other", model, params, carry_from=encoder)
    flags = "--steps 6 --learning-rate 0.02 --eval-every 3"
    out, file = trained("classification"), files["classification"]
    fails(arguments("classification", tmp_path / "other", file, out, flags), "weights_at_the_start")


def test_a_finished_run_stays_as_it_is(encoder, trained, arguments, files, fails, capsys):
    run = trained("classification")
    flags = "--steps 6 --learning-rate 0.02 --eval-every 3"
    line = arguments("classification", encoder, files["classification"], run, flags)
    names = ("metrics.jsonl", "metrics.json", "model/config.json", "model/model.safetensors")
    before = {name: (run / name).read_bytes() for name in names}
    assert main(line) == 0
    capsys.readouterr()
    assert {name: (run / name).read_bytes() for name in names} == before
    for flag, field in (
        ("--learning-rate 0.5", "optimization.learning_rate"),
        ("--max-length 16", "examples.max_length"),
        ("--method lora", "adaptation.method"),
    ):
        assert main([*line, *flag.split()]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert field in error and "another directory" in error
    assert {name: (run / name).read_bytes() for name in names} == before
