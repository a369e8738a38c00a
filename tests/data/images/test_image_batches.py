"""Batches of pictures: what is in them, in which order, and what bad pictures do to them."""

import errno
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from fmjax.core.errors import DataError
from fmjax.data.images import (
    Examples,
    ImageFolder,
    ImageSource,
    digits,
    hash_split,
    image_batches,
    image_eval_batches,
    open_images,
    photographs,
)
from fmjax.data.images.rows import Rows
from fmjax.recipes.vision.reading import find_images


def png(level: int, height: int = 4, width: int = 6) -> bytes:
    """A grey picture that knows its number."""
    out = io.BytesIO()
    Image.new("L", (width, height), level).save(out, "PNG")
    return out.getvalue()


def numbered(n: int, bad: tuple[int, ...] = ()) -> Examples:
    examples = [{"image": b"" if i in bad else png(i), "label": i % 3} for i in range(n)]
    return Examples(examples, ["a", "b", "c"], [f"{i}.png" for i in range(n)])


def levels(batch: dict) -> list[int]:
    return batch["image"][:, 0, 0, 0].tolist()


def folder(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(i))
    return root


def test_a_batch() -> None:
    source = Examples([png(7, 4, 6), png(9, 16, 32), png(11, 8, 8)])
    batch = next(image_batches(source, batch_size=3, image_size=8, shuffle=False, prefetch=0))
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("uint8", (3, 8, 8, 3)),
        "image_size": ("int32", (3, 2)),
        "example_weight": ("float32", (3,)),
    }
    assert batch["image_size"].tolist() == [[4, 6], [4, 8], [8, 8]]
    for row, (height, width), level in zip(
        batch["image"], batch["image_size"], (7, 9, 11), strict=True
    ):
        assert (row[:height, :width] == level).all()
        assert row.sum() == 3 * level * height * width


def test_every_example_once_an_epoch_in_a_new_order() -> None:
    batches = image_batches(numbered(10), batch_size=4, image_size=8, epochs=2)
    seen = list(batches)
    assert [batch["example_weight"].sum() for batch in seen] == [4] * 5
    order = [level for batch in seen for level in levels(batch)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:] and order[:10] != list(range(10))
    for batch in seen:
        assert batch["labels"].tolist() == [level % 3 for level in levels(batch)]
    assert "labels" not in next(
        image_batches(numbered(4), batch_size=2, image_size=8, labels=False)
    )


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resumes_exactly(prefetch: int) -> None:
    def make():
        return image_batches(
            numbered(7, bad=(2,)), batch_size=2, image_size=4, prefetch=prefetch, workers=2
        )

    whole = make()
    expected = [levels(next(whole)) for _ in range(9)]
    first = make()
    for _ in range(4):
        next(first)
    second = make()
    second.set_state(first.get_state())
    assert [levels(next(second)) for _ in range(5)] == expected[4:]
    assert second.get_state() == whole.get_state()


def test_another_set_or_setting_is_not_resumed() -> None:
    state = image_batches(numbered(7), batch_size=2, image_size=4).get_state()
    with pytest.raises(DataError, match="image_size was 4, is 8"):
        image_batches(numbered(7), batch_size=2, image_size=8).set_state(state)
    other = Examples([png(i) for i in range(7)], "abc", [f"new {i}.png" for i in range(7)])
    with pytest.raises(DataError, match="checksum was"):
        image_batches(other, batch_size=2, image_size=4).set_state(state)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_batches_do_not_depend_on_the_processes(processes: int) -> None:
    def read(index: int, count: int) -> list[list[int]]:
        batches = image_batches(
            numbered(10, bad=(1, 6)), batch_size=4, image_size=4, epochs=2,
            process_index=index, process_count=count,
        )  # fmt: skip
        return [levels(batch) for batch in batches]

    shares = [read(i, processes) for i in range(processes)]
    joined = [sum(rows, []) for rows in zip(*shares, strict=True)]
    assert joined == read(0, 1)


def test_a_bad_picture_is_replaced_by_the_same_one_and_counted_once() -> None:
    source = numbered(9, bad=(4,))
    source._examples[6] = {"image": png(1)[:20], "label": 0}
    source._examples[7] = {"image": png(7)}
    batches = image_batches(source, batch_size=3, image_size=4, epochs=2, shuffle=False)
    order = [level for batch in batches for level in levels(batch)]
    # Example 4 becomes the one half an epoch on (8), 6 becomes 1, and 7 becomes 2.
    assert order == [0, 1, 2, 3, 8, 5, 1, 2, 8] * 2
    assert batches.skipped == {"empty file": 1, "truncated": 1, "no label": 1}
    assert batches.report() == (
        "left out of 9 examples: 1 × empty file (e.g. 4.png); 1 × truncated (e.g. 6.png); "
        "1 × no label (e.g. 7.png)"
    )


def test_the_report_does_not_depend_on_which_thread_is_first() -> None:
    source = numbered(4, bad=(0,))
    source._examples[1] = {"image": png(1)[:20], "label": 0}
    rows = Rows(
        source, 4, labels=True, captions=None, on_bad="skip", max_pixels=100,
        background=(0, 0, 0), replace=True, seed=0,
    )  # fmt: skip
    for index in (1, 0):
        assert rows._usable(index, 0) is None
    assert list(rows.skipped) == ["empty file", "truncated"]
    assert rows.report().index("0.png") < rows.report().index("1.png")


def test_nothing_bad_nothing_to_report() -> None:
    batches = image_batches(numbered(4), batch_size=4, image_size=4)
    next(batches)
    assert batches.skipped == {} and batches.report() == ""


def test_policy_error_names_the_file(tmp_path: Path) -> None:
    root = folder(tmp_path, "a/0.png", "b/1.png")
    (root / "b" / "1.png").write_bytes(png(1)[:-30])
    batches = image_batches(ImageFolder(root), batch_size=2, image_size=4, on_bad="error")
    with pytest.raises(DataError, match=r"b/1\.png: truncated .*repair or remove it"):
        next(batches)
    evaluation = image_eval_batches(ImageFolder(root), batch_size=2, image_size=4, on_bad="error")
    with pytest.raises(DataError, match=r"b/1\.png: truncated"):
        list(evaluation)


def test_a_set_of_which_little_can_be_read_ends_the_run() -> None:
    with pytest.raises(DataError, match=r"none of the 3 examples .*3 × empty file \(e\.g\. 0.png"):
        next(image_batches(numbered(3, bad=(0, 1, 2)), batch_size=2, image_size=4))
    mostly = numbered(150, bad=tuple(range(20, 150)))
    with pytest.raises(DataError, match="most examples cannot be used"):
        list(image_batches(mostly, batch_size=10, image_size=4, epochs=1))


def test_a_source_that_fails_is_one_more_bad_example() -> None:
    class Flaky(Examples):
        def __getitem__(self, index: int):
            if index == 2:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    batches = image_batches(Flaky([png(i) for i in range(5)]), batch_size=5, image_size=4)
    assert 2 not in levels(next(batches))
    assert batches.skipped == {"unreadable": 1}


def test_evaluation_takes_each_once_and_leaves_bad_ones_out() -> None:
    batches = image_eval_batches(numbered(7, bad=(2,)), batch_size=4, image_size=4)
    assert len(batches) == 2
    for _ in range(2):
        seen = list(batches)
        assert [level for batch in seen for level in levels(batch)] == [0, 1, 0, 3, 4, 5, 6, 0]
        assert seen[0]["example_weight"].tolist() == [1, 1, 0, 1]
        assert seen[1]["example_weight"].tolist() == [1, 1, 1, 0]
        assert seen[1]["labels"].tolist() == [1, 2, 0, 0]
        assert (seen[1]["image_size"] > 0).all()
    assert batches.skipped == {"empty file": 1}
    assert "1 × empty file (e.g. 2.png)" in batches.report()


def test_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "cat/0.png", "cat/sub/1.JPG", "dog/2.png", ".hidden/3.png")
    (root / "cat" / "notes.txt").write_text("not a picture")
    source = ImageFolder(root)
    assert source.class_names == ("cat", "dog")
    assert [(source.group(i), source[i]["label"]) for i in range(len(source))] == [
        ("cat/0.png", 0), ("cat/sub/1.JPG", 0), ("dog/2.png", 1),
    ]  # fmt: skip
    flat = ImageFolder(folder(tmp_path / "flat", "b.png", "a.png"))
    assert [flat.group(i) for i in range(2)] == ["a.png", "b.png"]
    assert flat.class_names == () and "label" not in flat[0]


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9/%d.png" % i) for i in range(4)]
    source = ImageFolder(folder(tmp_path, *names))
    train, held_out = hash_split(source, 0.25)
    assert (len(train), len(held_out)) == (3, 1)
    batches = image_batches(source, batch_size=4, image_size=8)
    assert sorted(levels(next(batches))) == [0, 1, 2, 3]
    state = batches.get_state()
    batches.set_state(state)


def test_links_in_folders_are_followed_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "cat/0.png")
    (root / "dog").symlink_to(folder(tmp_path / "elsewhere", "1.png"))
    (root / "cat" / "round").symlink_to(root)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    source = ImageFolder(root)
    assert [source.group(i) for i in range(len(source))] == [
        "cat/0.png", "cat/gone.png", "dog/1.png",
    ]  # fmt: skip
    evaluation = image_eval_batches(source, batch_size=3, image_size=4)
    assert next(iter(evaluation))["example_weight"].tolist() == [1, 0, 1]
    assert evaluation.skipped == {"no such file": 1}


def test_folders_with_splits(tmp_path: Path) -> None:
    root = folder(tmp_path, "train/cat/0.png", "train/dog/1.png", "val/dog/2.png", "val/emu/3.png")
    for split, labels in {"train": [0, 1], "validation": [1, 2], "all": [0, 1, 1, 2]}.items():
        source = open_images(root, split)
        assert source.class_names == ("cat", "dog", "emu")
        assert [source[i]["label"] for i in range(len(source))] == labels


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no pictures there"):
        ImageFolder(tmp_path / "empty")
    mixed = folder(tmp_path / "mixed", "cat/0.png", "1.png")
    with pytest.raises(DataError, match="1.png lies beside the directories of classes .cat."):
        ImageFolder(mixed)
    source = ImageFolder(mixed, mixed=True)
    assert source.class_names == () and "label" not in source[0]
    assert [source.group(i) for i in range(len(source))] == ["1.png", "cat/0.png"]
    with pytest.raises(DataError, match="no directories of splits"):
        ImageFolder(folder(tmp_path / "plain", "cat/0.png"), "train")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    with pytest.raises(DataError, match='shards: no pictures there; .*"/.*/shards/.*tar"'):
        ImageFolder(tmp_path / "shards")


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path, "a/0.png", "b/1.png", "c/2.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for find in (ImageFolder, lambda place: find_images([place])):
        with pytest.raises(DataError, match="/b: the folder cannot be listed .Permission denied"):
            find(tmp_path)


def test_splits_by_hash_keep_groups_together() -> None:
    groups = [f"g{i // 3}" for i in range(60)]
    source = Examples([png(i) for i in range(60)], groups=groups)
    train, held_out = hash_split(source, 0.2)
    ours, theirs = ({s.group(i) for i in range(len(s))} for s in (train, held_out))
    assert not ours & theirs and len(held_out) == 12 and len(train) == 48
    again = hash_split(source, 0.2)[1]
    assert [again.name(i) for i in range(12)] == [held_out.name(i) for i in range(12)]
    with pytest.raises(DataError, match="between 0 and 1"):
        hash_split(source, 1.0)
    with pytest.raises(DataError, match="cannot be split"):
        hash_split(Examples([png(0)]), 0.5)


def test_a_sample_is_drawn_from_everywhere() -> None:
    drawn = digits().sample(100)
    labels = [drawn[i]["label"] for i in range(100)]
    assert len(drawn) == 100 and set(labels) == set(range(10))
    again = digits().sample(100)
    assert [drawn.name(i) for i in range(100)] == [again.name(i) for i in range(100)]
    assert len(numbered(3).sample(5)) == 3


def test_class_names_of_another_set(tmp_path: Path) -> None:
    root = folder(tmp_path, "dog/0.png", "emu/1.png")
    source = open_images(root, class_names=["cat", "dog", "emu"])
    assert source.class_names == ("cat", "dog", "emu")
    assert [source[i]["label"] for i in range(2)] == [1, 2]
    with pytest.raises(DataError, match='the class "emu" is none of cat, dog'):
        open_images(root, class_names=["cat", "dog"])
    assert len(open_images("digits", class_names=[str(i) for i in range(10)])) == 1797
    message = "digits has the classes 10 × 0, 1, 2, 3, 4, …, and not 3 × cat, dog, emu; give"
    with pytest.raises(DataError, match=message):
        open_images("digits", class_names=["cat", "dog", "emu"])


def test_names() -> None:
    whole, train, held_out = (open_images(f"digits:{s}") for s in ("all", "train", "validation"))
    assert (len(whole), len(train), len(held_out)) == (1797, 898, 899)
    assert whole.class_names == tuple("0123456789")
    assert len(open_images("photographs", "train", held_out=0.5)) == 9
    with pytest.raises(DataError, match="nothing-such: no pictures have this name"):
        open_images("nothing-such")
    with pytest.raises(DataError, match='no split "dev"'):
        open_images("digits", "dev")


def test_digits_anywhere() -> None:
    plain, moved = (open_images(name, "validation") for name in ("digits", "digits/12"))
    seen = set()
    for i in range(60):
        image, larger = plain[i]["image"], moved[i]["image"]
        assert plain[i]["label"] == moved[i]["label"] and larger.shape == (12, 12)
        places = [(y, x) for y in range(5) for x in range(5)]
        found = [p for p in places if (larger[p[0] :, p[1] :][:8, :8] == image).all()]
        assert found and larger.sum() == image.sum()
        seen.add(found[0])
    assert len(seen) > 15
    with pytest.raises(DataError, match="digits/7: a digit has 8 pixels"):
        open_images("digits/7")


def test_digits() -> None:
    batch = next(image_batches(digits(), batch_size=3, image_size=8, shuffle=False))
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["image"][0, 0, :, 1].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_photographs() -> None:
    pytest.importorskip("skimage")
    source = photographs()
    batches = image_eval_batches(source, batch_size=9, image_size=32)
    assert sum(batch["example_weight"].sum() for batch in batches) == len(source) == 17
    assert source[4]["caption"] == "the face of a tabby cat"
    tiles = open_images("photographs/128")
    assert tiles.class_names == source.class_names and len(tiles) > 150
    assert all(tiles[i]["image"].shape == (128, 128, 3) for i in (0, len(tiles) - 1))
    with pytest.raises(DataError, match="no photograph has room"):
        photographs(5000)


def test_photographs_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"scikit-image; pip install 'fmjax\[images\]'"):
        photographs()


def test_several_sources() -> None:
    source = [numbered(3), numbered(2)]
    batch = next(image_batches(source, batch_size=5, image_size=4, shuffle=False))
    assert levels(batch) == [0, 1, 2, 0, 1]
    with pytest.raises(DataError, match="unlike classes"):
        image_batches([numbered(3), digits()], batch_size=2, image_size=4)
    with pytest.raises(DataError, match="one kind"):
        image_batches([numbered(3), png(1)], batch_size=2, image_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"image_size": 0}, "0 pixels"),
        ({"epochs": 0}, "epochs=0"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"workers": 0}, "workers=0"),
        ({"on_bad": "ignore"}, '"skip" or "error"'),
        ({"max_pixels": 10**10}, "max_pixels=10000000000"),
        ({"sources": []}, "without examples"),
        ({"process_index": 0, "process_count": 3}, "does not divide by 3"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_batches(**{"sources": numbered(3), "batch_size": 2, "image_size": 4} | options)


def test_a_source_must_give_examples() -> None:
    with pytest.raises(TypeError, match="must define __len__"):
        image_batches(ImageSource(), batch_size=2, image_size=4)
