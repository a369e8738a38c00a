"""Runs on images from the command line: they learn, resume, measure, and leave models behind."""

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import quick
from PIL import Image

import fmjax
from fmjax.cli.main import main
from fmjax.data.images import ImageProcessor
from fmjax.recipes.vision.figures import FIGURES, LARS, completed
from fmjax.recipes.vision.image_sets import open_pictures
from fmjax.recipes.vision.measuring import Measure, _filled
from fmjax.recipes.vision.pretrain import PretrainImages
from fmjax.recipes.vision.run import Run
from fmjax.recipes.vision.settings import ImageOptimization, Images
from fmjax.recipes.vision.start import resolve_images
from fmjax.train.run import Run as Steps

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


def stopped_before(update: int, start: Callable[[], int]) -> None:
    """Starts a run that ends before this update, as by Ctrl-C."""
    advance, count = Steps.advance, 0

    def stop(self):
        nonlocal count
        count += 1
        if count == update:
            raise KeyboardInterrupt
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "advance", stop)
        assert start() == 130


def same_figures(out: Path, wanted: Path) -> None:
    """All losses, of training and evaluations, and what was measured."""
    ours, theirs = (
        {
            (row["step"], name): value
            for row in log(directory)
            for name, value in row.items()
            if any(part in name for part in ("loss", "knn", "_r@", "accuracy"))
        }
        for directory in (out, wanted)
    )
    assert ours == theirs and len(theirs) >= 4


@pytest.mark.slow
def test_mae_goes_on_where_it_stopped(tmp_path, capsys):
    steps = ("--warmup", "0", "--log-every", "1", "--eval-every", "2", "--checkpoint-every", "2")
    more = (*steps, "--steps", "4", "--features", "patches", "--whiten", "9")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train("mae", "mae-b16", whole, MAE, *more) == 0
    out = capsys.readouterr().out
    assert "accuracy of the 5 nearest neighbours" in out and "encoder before training" in out
    assert "whitened pixels" in out and "margin over the best of these" in out
    stopped_before(4, lambda: train("mae", "mae-b16", parts, MAE, *more))
    assert train("mae", "mae-b16", parts, MAE, *more) == 0
    same_figures(parts, whole)
    model, params = fmjax.from_pretrained(parts / "model")
    assert model.config.head == "pretraining"
    assert ImageProcessor.from_pretrained(parts / "model").output_size == (8, 8)
    page = (parts / "report.html").read_text()
    for title in ("Figures", "What is filled in", "Nearest neighbours"):
        assert f"<h2>{title}</h2>" in page


@pytest.mark.slow
def test_two_processes_learn_and_measure_as_one(tmp_path):
    """Each reads and decodes half of every batch; figures are of all held-out pictures."""
    steps = ("--steps", "2", "--log-every", "1", "--eval-every", "2")
    assert train("mae", "mae-b16", tmp_path / "one", MAE, *steps) == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "fmjax", "train", "--objective", "mae", "--model", "mae-b16"]
    command += ["--out", str(tmp_path / "two"), *DIGITS, "--override", *MAE, *steps]
    command += ["--coordinator", place, "--processes", "2", "--process"]
    pair = [
        subprocess.Popen(
            [*command, str(i)],
            env=quick.environ(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert "nearest neighbours" in said[0] and "nearest neighbours" not in said[1]
    one, two = (
        {(row["step"], k): v for row in log(tmp_path / d) for k, v in row.items() if "loss" in k}
        for d in ("one", "two")
    )
    assert one.keys() == two.keys() and len(one) >= 3
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)
    figures = [log(tmp_path / d)[-1]["eval_knn5"] for d in ("one", "two")]
    assert figures[0] == pytest.approx(figures[1], abs=1e-9)
    assert (tmp_path / "two" / "model" / "preprocessor_config.json").is_file()


RESNET = ["embedding_size=8", "hidden_sizes=[16]", "depths=[1]", 'layer_type="basic"']


@pytest.mark.parametrize(
    "objective, model, more",
    [
        ("simclr", "vit-ti16", ("--features", "mean")),
        ("simclr", "resnet-50", ("--image-size", "8")),  # by LARS
        ("dino", "vit-ti16", ("--local-crops", "1", "--prototypes", "8")),
        ("dino", "resnet-50", ("--image-size", "8", "--local-crops", "0", "--prototypes", "8")),
        ("dinov2", "dinov2-s14", ("--local-crops", "1", "--prototypes", "8")),
        ("supervised", "vit-ti16", ("--mixup", "0.8", "--cutmix", "1", "--rand-augment")),
    ],
)
@pytest.mark.slow
def test_others_go_on_where_they_stopped(objective, model, more, tmp_path):
    steps = ("--log-every", "1", "--eval-every", "2", "--checkpoint-every", "2", "--hidden", "16")
    fields = [f for f in TINY if model != "dinov2-s14" or "intermediate_size" not in f]
    fields = RESNET if model == "resnet-50" else fields
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = (fields, "--steps", "3", "--warmup", "0", *steps, *more)
    assert train(objective, model, whole, *arguments) == 0
    stopped_before(3, lambda: train(objective, model, parts, *arguments))
    assert train(objective, model, parts, *arguments) == 0
    same_figures(parts, whole)
    rows = log(whole)
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    model, params = fmjax.from_pretrained(parts / "model")
    if objective == "supervised":
        assert model.config.id2label == tuple("0123456789")
        assert any("eval_accuracy" in row for row in rows)
    else:
        assert model.config.head is None
        assert any("eval_knn5" in row for row in rows)


@pytest.mark.slow
def test_from_a_directory_on_folders_of_pictures(tmp_path, monkeypatch, capsys):
    """What one run leaves behind starts the next, whose held-out pictures are in a folder."""
    assert train("supervised", "vit-ti16", tmp_path / "first", TINY, "--steps", "1") == 0
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 5)):
        for name, shade in (("dark", 20), ("light", 200)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = shade + rng.integers(0, 40, (14, 10, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / name / f"{i}.png")
    arguments = ["train", "--objective", "simclr", "--model", str(tmp_path / "first" / "model")]
    monkeypatch.chdir(tmp_path)
    arguments += ["--out", str(tmp_path / "second"), "--images", "train"]
    arguments += ["--eval-images", "test", "--stored-size", "12"]
    arguments += "--batch-size 8 --steps 2 --neighbours 3 --hidden 16 --learning-rate 0".split()
    assert main(arguments) == 0
    assert "24 pictures" in capsys.readouterr().out
    first, second = (fmjax.from_pretrained(tmp_path / n / "model")[1] for n in ("first", "second"))
    second.pop("pooler")  # which a classifier has not
    jax.tree.map(np.testing.assert_array_equal, second, {name: first[name] for name in second})
    # Folders have one label a picture, whatever the labels of the first model were.
    file = tmp_path / "first" / "model" / "config.json"
    config = json.loads(file.read_text()) | {"problem_type": "multi_label_classification"}
    file.write_text(json.dumps(config))
    arguments[2], arguments[6] = "supervised", str(tmp_path / "third")
    assert main([a for a in arguments if a not in ("--hidden", "16")]) == 0
    model, _ = fmjax.from_pretrained(tmp_path / "third" / "model")
    assert model.config.id2label == ("dark", "light") and model.config.problem_type is None


PAIRS = [
    "projection_dim=8",
    *(f"{part}.{field}" for part in ("vision_config", "text_config") for field in TINY[2:]),
    "vision_config.image_size=8",
    "vision_config.patch_size=4",
    "text_config.max_position_embeddings=12",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Twelve pictures of one colour each, a table that names the colours, and a tokenizer."""
    root = tmp_path_factory.mktemp("pairs")
    names = [f"{shade} {colour}" for shade in ("dark", "light") for colour in "rgbcmy"]
    rows = ["image\tcaption"]
    for i, name in enumerate(names):
        Image.new("RGB", (9, 8), (20 * i, 255 - 20 * i, 7 * i)).save(root / f"{i}.png")
        rows.append(f"{i}.png\t{name}")
    (root / "pairs.tsv").write_text("\n".join(rows) + "\n")
    fmjax.data.train_clip_tokenizer(names, root / "tokenizer", 530)
    return root


def two_towers(objective: str, model: str, pairs: Path, out: Path, *more: str) -> int:
    arguments = ["train", "--objective", objective, "--model", model, "--out", str(out)]
    arguments += ["--images", str(pairs / "pairs.tsv"), "--eval-fraction", "0.3"]
    arguments += ["--tokenizer", str(pairs / "tokenizer"), "--batch-size", "16", "--steps", "2"]
    own = PAIRS[0] if objective == "clip" else "text_config.projection_size=16"
    return main([*arguments, "--override", own, *PAIRS[1:], *more])


@pytest.mark.parametrize(
    "objective, model", [("clip", "clip-vit-b32"), ("siglip", "siglip-b16-224")]
)
@pytest.mark.slow
def test_pictures_and_captions(objective, model, pairs, tmp_path, capsys):
    out = tmp_path / "run"
    more = ("--caption-length", "6", "--accumulate", "2") if objective == "siglip" else ()
    each = (*more, "--log-every", "1", "--eval-every", "1", "--checkpoint-every", "1")
    assert two_towers(objective, model, pairs, out, *each) == 0
    text = capsys.readouterr().out
    assert "image to text: R@1" in text and "chance" in text and "fmjax retrieve" in text
    parts = tmp_path / "parts"
    stopped_before(2, lambda: two_towers(objective, model, pairs, parts, *each))
    assert two_towers(objective, model, pairs, parts, *each) == 0
    same_figures(parts, out)
    last = log(out)[-1]
    assert {"eval_loss", "eval_image_to_text_r@10", "eval_text_to_image_r@1"} <= set(last)
    page = (out / "report.html").read_text()
    assert "<h2>What captions find</h2>" in page and "dark" in page
    model, params = fmjax.from_pretrained(out / "model")
    # SigLIP reads a text at its last place, so a shorter caption is a shorter table.
    assert model.config.text_config.max_position_embeddings == (6 if more else 12)
    assert fmjax.load_tokenizer(out / "model").eos_token_id == model.config.text_config.eos_token_id


def test_pictures_with_captions_are_never_mirrored(pairs, tmp_path):
    start = {"out": tmp_path, "override": tuple(PAIRS), "tokenizer": str(pairs / "tokenizer")}
    data = Images(images=str(pairs / "pairs.tsv"), eval_fraction=0.3, batch_size=16)
    run = Run.open(PretrainImages("clip", "clip-vit-b32", data=data, **start))
    assert run.settings.views.flip and run.learner.augment.view.flip == 0.0


def test_clip_needs_a_tokenizer_that_ends_texts(pairs, tmp_path, capsys):
    fmjax.data.train_sentencepiece(["dark r light g"] * 50, tmp_path / "spm", 270)
    more = ("--tokenizer", str(tmp_path / "spm"))
    assert two_towers("clip", "clip-vit-b32", pairs, tmp_path / "run", *more) == 2
    assert "fmjax tokenizer --kind clip" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def settings(objective: str, model: str, images: str, **data) -> PretrainImages:
    return PretrainImages(objective, model, Path("run"), Images(images, batch_size=8, **data))


def test_pictures_without_a_label_are_learnt_from(tmp_path):
    """The vote alone leaves them out."""
    rows = []
    for i in range(60):
        Image.new("RGB", (9, 8), (4 * i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png"} | ({"label": "ab"[i % 2]} if i % 5 == 0 else {}))
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    wanted = settings("mae", "mae-b16", str(table), image_size=32)
    pictures = open_pictures(wanted, resolve_images(wanted))
    with contextlib.closing(pictures.train):
        seen = [next(pictures.train) for _ in range(9)]
        assert not pictures.train.report()
    assert all("labels" not in batch for batch in seen) and "labels" not in pictures.abstract
    assert all(batch["example_weight"].all() for batch in seen)
    labelled = sum(int(batch["example_weight"].sum()) for batch in pictures.bank)
    assert 0 < labelled <= 12


def test_the_size_of_pictures_is_the_models_unless_it_has_weights():
    wanted = settings("mae", "mae-b16", "digits", image_size=96)
    assert resolve_images(wanted).config.image_size == 96
    said = dataclasses.replace(wanted, override=("image_size=48",))
    assert resolve_images(said).config.image_size == 48
    assert resolve_images(settings("simclr", "resnet-50", "digits", image_size=96)).image_size == 96


def test_decay_grows_unless_it_is_given():
    wanted = settings("dino", "vit-ti16", "digits", image_size=32)
    assert callable(Run.open(wanted)._decay())
    given = ImageOptimization(weight_decay=0.0)
    assert Run.open(dataclasses.replace(wanted, optimization=given))._decay() == 0.0


@pytest.mark.parametrize("objective, learned", [("dino", False), ("dinov2", True)])
def test_only_prototypes_of_dinov2_have_a_length(objective, learned):
    module = Run.open(settings(objective, "vit-ti16", "digits", image_size=32)).learner.module
    assert ("scale" in fmjax.abstract_params(module)["head"]["last_layer"]) == learned


@pytest.mark.parametrize("side, seen", [(16, 16), (48, 32)])
def test_pixels_of_large_pictures_are_compared_small(side, seen):
    run = Run.open(settings("simclr", "vit-ti16", "digits", image_size=side))
    measure = Measure.of(run.learner, run.pictures, run.settings.probing, run.layout)
    assert measure._pixels(next(iter(run.pictures.bank))).shape == (8, seen * seen * 3)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_rows_are_filled_up_for_the_devices(rows):
    raw = {"image": np.arange(rows)[:, None], "example_weight": np.ones(rows, np.float32)}
    filled = _filled(raw, 4)
    assert len(filled["image"]) % 4 == 0 and filled["example_weight"].sum() == rows
    np.testing.assert_array_equal(filled["image"][:rows], raw["image"])
    assert (filled["image"][rows:] == rows - 1).all()


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
        ("clip", "vit-ti16", (), "digits has none; give a .tsv"),
        ("dino", "vit-ti16", ("--images", "digits:train"), "with nothing held out"),
        ("dinov2", "mae-b16", (), "that vit_mae has not"),
        ("simclr", "gpt2", (), "gpt2 does not see images"),
        ("dino", "clip-vit-b32", (), "has no tokenizer of its own"),
        ("simclr", "vit-ti16", ("--mixup", "1"), "--mixup belongs to --objective supervised"),
        ("dino", "vit-ti16", ("--optimizer", "lars"), "not for --objective dino"),
        ("dino", "vit-ti16", ("--smallest-crop", "2"), "must lie in 0 to 1"),
        ("dino", "vit-ti16", ("--whiten", "-1"), "--whiten -1 must not be below 0"),
        ("dino", "vit-ti16", ("--local-crops", "-1"), "--local-crops -1 must not be below 0"),
        ("dino", "vit-ti16", ("--local-size", "5"), "--local-size 5 is not a number of whole"),
        ("dino", "vit-ti16", ("--color", "-1"), "--color -1.0 must not be below 0"),
        ("dino", "vit-ti16", ("--prototypes", "0"), "--prototypes 0 must be at least 1"),
        ("simclr", "vit-ti16", ("--hidden", "0"), "--hidden 0 must be at least 1"),
        ("dino", "vit-ti16", ("--teacher-temperature", "0"), "0.0 must be above 0"),
        ("dino", "vit-ti16", ("--teacher-momentum", "2"), "2.0 must lie in 0 to 1"),
        ("dino", "vit-ti16", ("--eval-images", "digits:train"), "are in --images digits too"),
        ("supervised", "vit-ti16", ("--whiten", "9"), "is of the vote by neighbours"),
        ("simclr", "resnet-50", ("--features", "mean"), "leave it out for the encoder's own"),
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


def test_published_figures_of_the_teachers():
    for objective, momentum, temperature in (("dino", 0.996, 0.04), ("dinov2", 0.994, 0.07)):
        _, paper = completed(ImageOptimization(), objective, 2048, False)
        assert (paper.teacher_momentum, paper.teacher_temperature) == (momentum, temperature)
