"""Which pictures a run trains on, and which it is measured on."""

import shutil

import pytest
from PIL import Image

from fmjax.cli.main import main
from fmjax.core.errors import DataError
from fmjax.recipes.vision.image_sets import open_both
from fmjax.recipes.vision.settings import Images


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name in "ab":
        (root / name).mkdir()
        for i in range(15):
            Image.new("L", (4, 4), i).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    "images, eval_images, sizes",
    [
        ("digits", "digits", (898, 899)),
        ("digits:train", "digits", (898, 899)),
        ("digits", "digits:validation", (898, 899)),
        ("{}", "{}", (27, 3)),
        ("{}", "{}:validation", (27, 3)),
        ("{}:train", "{}", (27, 3)),
        ("{}/", "{}:validation", (27, 3)),
        ("{}/a", "{}/b", (15, 15)),
    ],
)
def test_no_picture_is_both_trained_and_measured_on(images, eval_images, sizes, photos):
    data = Images(images=images.format(photos), eval_images=eval_images.format(photos))
    train, held_out = open_both(data)
    assert (len(train), len(held_out)) == sizes
    names = [{s.name(i) for i in range(len(s))} for s in (train, held_out)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("eval_images", ["{}:train", "{}:all", "{}/a"])
def test_pictures_that_are_trained_on_are_refused(eval_images, photos):
    data = Images(images=f"{photos}:all", eval_images=eval_images.format(photos))
    with pytest.raises(DataError, match="of the pictures of --eval-images .* too, such as"):
        open_both(data)


TINY = (
    "--batch-size 8 --steps 1 --override image_size=8 patch_size=4 hidden_size=16 "
    "intermediate_size=32 num_hidden_layers=1 num_attention_heads=2"
).split()


def train(objective, images, out, *more):
    arguments = ["train", "--objective", objective, "--model", "vit-ti16", "--images", images]
    return main([str(a) for a in (*arguments, "--out", out, *more, *TINY)])


def test_held_out_pictures_that_cannot_be_read(photos, tmp_path, capsys):
    """Some are counted beside the figures; without any other there is no run."""
    shutil.copytree(photos, tmp_path / "val")
    files = sorted((tmp_path / "val").rglob("*.png"))
    for file in files[:-1]:
        file.write_text("no picture")
    options = ("--eval-images", tmp_path / "val")
    assert train("supervised", photos, tmp_path / "run", *options) == 0
    said = f"held-out pictures: left out of 30 examples: 29 × not an image (e.g. {files[0]})"
    assert said in capsys.readouterr().out
    assert (
        "held-out pictures: left out of 30 examples: 29 × "
        in (tmp_path / "run" / "report.html").read_text()
    )
    files[-1].write_text("no picture either")
    assert train("supervised", photos, tmp_path / "none", *options) == 2
    error = capsys.readouterr().err
    assert "no held-out picture can be used, left out of 30 examples: 30 × not an image" in error
    assert not (tmp_path / "none").exists()


def test_one_class_is_nothing_to_measure_by(photos, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    shutil.copytree(photos / "a", tmp_path / "one" / "album")
    assert train("simclr", tmp_path / "one", tmp_path / "run") == 0
    assert "neighbours" not in capsys.readouterr().out
    assert train("supervised", tmp_path / "one", tmp_path / "none") == 2
    message = f"all of {tmp_path / 'one'} is 'album'; give a folder that has one for each class, as"
    assert f"{message} {tmp_path / 'one' / 'album'} may be" in capsys.readouterr().err


def test_where_labels_are_not_read_pictures_lie_anywhere(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "mixed")
    shutil.copy(photos / "a" / "0.png", tmp_path / "mixed" / "new.png")
    assert train("simclr", tmp_path / "mixed", tmp_path / "run") == 0
    assert " 28 pictures" in capsys.readouterr().out
    assert train("supervised", tmp_path / "mixed", tmp_path / "none") == 2
    assert "lies beside the directories of classes" in capsys.readouterr().err


def test_what_is_broken_does_not_count_among_the_neighbours(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    for file in sorted((tmp_path / "photos").rglob("*.png"))[5:12]:
        file.write_bytes(file.read_bytes()[:40])
    arguments = f"train --objective simclr --model vit-ti16 --out {tmp_path / 'run'} --steps 1"
    arguments += f" --images {tmp_path / 'photos'} --neighbours 25 --batch-size 8"
    arguments += " --projection 8 --hidden 8 --override image_size=8 patch_size=4 hidden_size=16"
    arguments += " intermediate_size=32 num_hidden_layers=1 num_attention_heads=2"
    assert main(arguments.split()) == 0
    assert "left out of" in capsys.readouterr().out
