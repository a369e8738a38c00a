"""Runs on images from the command line: they learn, resume, measure, and leave models behind."""

import json
from pathlib import Path

import numpy as np
import pytest

import fmjax
from fmjax.cli.main import main
from fmjax.data.images import ImageProcessor
from fmjax.recipes.vision.figures import FIGURES, LARS, completed
from fmjax.recipes.vision.settings import ImageOptimization

TINY = [
    "image_size=8",
    "patch_size=4",
    "hidden_size=16",
    "intermediate_size=32",
    "num_hidden_layers=1",
    "num_attention_heads=2",
]
MAE = [
    *TINY,
    "decoder_hidden_size=16",
    "decoder_intermediate_size=32",
    "decoder_num_hidden_layers=1",
    "decoder_num_attention_heads=2",
]
DIGITS = "--images digits --no-flip --batch-size 32 --bank 64 --neighbours 5".split()


def train(objective: str, model: str, out: Path, override: list[str], *more: str) -> int:
    arguments = ["train", "--objective", objective, "--model", model, "--out", str(out)]
    return main([*arguments, *DIGITS, "--override", *override, *more])


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_mae_goes_on_where_it_stopped(tmp_path, capsys):
    steps = ("--warmup", "0", "--log-every", "1", "--eval-every", "2", "--checkpoint-every", "2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train("mae", "mae-b16", whole, MAE, "--steps", "4", *steps) == 0
    out = capsys.readouterr().out
    assert "accuracy of the 5 nearest neighbours" in out and "untrained encoder" in out
    assert "margin over the better of these" in out
    from fmjax.train import run

    advance, count = run.Run.advance, 0

    def stop(self):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Run, "advance", stop)
        assert train("mae", "mae-b16", parts, MAE, "--steps", "4", *steps) == 130
    assert train("mae", "mae-b16", parts, MAE, "--steps", "4", *steps) == 0
    ours, wanted = (
        {(row["step"], k): v for row in log(d) for k, v in row.items() if "loss" in k or "knn" in k}
        for d in (parts, whole)
    )
    assert ours == wanted and len(wanted) > 6
    model, params = fmjax.from_pretrained(parts / "model")
    assert model.config.head == "pretraining"
    assert ImageProcessor.from_pretrained(parts / "model").output_size == (8, 8)
    page = (parts / "report.html").read_text()
    for title in ("Figures", "What is filled in", "Nearest neighbours"):
        assert f"<h2>{title}</h2>" in page


@pytest.mark.parametrize(
    "objective, model, more",
    [
        ("simclr", "vit-ti16", ()),
        ("dino", "vit-ti16", ("--local-crops", "1", "--prototypes", "8")),
        ("dinov2", "dinov2-s14", ("--local-crops", "1", "--prototypes", "8")),
        ("supervised", "vit-ti16", ("--mixup", "0.8", "--cutmix", "1", "--rand-augment")),
    ],
)
def test_other_objectives(objective, model, more, tmp_path, capsys):
    steps = ("--steps", "2", "--log-every", "1", "--eval-every", "2", "--hidden", "16")
    fields = [f for f in TINY if model != "dinov2-s14" or "intermediate_size" not in f]
    assert train(objective, model, tmp_path / "run", fields, *steps, *more) == 0
    rows = log(tmp_path / "run")
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    model, params = fmjax.from_pretrained(tmp_path / "run" / "model")
    if objective == "supervised":
        assert model.config.id2label == tuple("0123456789")
        assert any("eval_accuracy" in row for row in rows)
    else:
        assert model.config.head is None
        assert any("eval_knn5" in row for row in rows)


def test_figures_of_the_papers():
    filled, paper = completed(ImageOptimization(steps=100), "dino", 512, residual=False)
    assert paper is FIGURES["dino"]
    assert (filled.learning_rate, filled.weight_decay, filled.warmup) == (1e-3, 0.04, 10)
    filled, paper = completed(ImageOptimization(steps=100), "simclr", 256, residual=True)
    assert paper is LARS and filled.optimizer == "lars" and filled.learning_rate == 0.3
    filled, _ = completed(ImageOptimization(learning_rate=1.0, beta2=0.5), "clip", 7, False)
    assert (filled.learning_rate, filled.beta2) == (1.0, 0.5)


@pytest.mark.parametrize(
    "objective, model, more, message",
    [
        ("mae", "vit-ti16", (), "--objective mae trains a vit_mae, not a vit"),
        ("clip", "vit-ti16", (), "vit is not both"),
        ("simclr", "gpt2", (), "gpt2 does not see images"),
        ("dino", "clip-vit-b32", (), "has no tokenizer of its own"),
        ("simclr", "vit-ti16", ("--mixup", "1"), "--mixup belongs to --objective supervised"),
        ("dino", "vit-ti16", ("--optimizer", "lars"), "not for --objective dino"),
        ("dino", "vit-ti16", ("--smallest-crop", "2"), "must lie in 0 to 1"),
        ("dino", "vit-ti16", ("--batch-size", "0"), "--batch-size 0 must be at least 1"),
        ("dino", "vit-ti16", ("--images", "nowhere"), "nowhere: no pictures have this name"),
        ("supervised", "vit-ti16", ("--images", "openmoji"), "needs labels"),
        ("dino", "vit-ti16", ("--override", "patch=3"), "has no field 'patch'"),
    ],
)
def test_bad_settings_leave_nothing_behind(objective, model, more, message, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "--objective", objective, "--model", model, "--out", str(out), *DIGITS]
    assert main([*arguments, *more]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
