"""The index of a folder: what is read anew when files come, change and go."""

import os

import numpy as np
import pytest

from fmjax.recipes.vision.index import model_fingerprint, read_index, update, write_index


@pytest.fixture
def folder(tmp_path):
    """Files whose "vectors" are their contents; one cannot be read."""
    (tmp_path / "deep").mkdir()
    for name, text in (("a.png", "1"), ("b.png", "2"), ("deep/c.png", "3"), ("bad.png", "x")):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def bring_up_to_date(folder):
    """(index, changes, names of the files that were read) after an update."""

    def run(old, model="m"):
        seen = []

        def embed(files):
            seen.extend(f.relative_to(folder).as_posix() for f in files)
            texts = [f.read_text() for f in files]
            numbers = [i for i, text in enumerate(texts) if text.isdigit()]
            bad = {f: "broken" for f, text in zip(files, texts, strict=True) if text == "x"}
            return numbers, np.array([[float(texts[i])] for i in numbers]).reshape(-1, 1), bad

        return *update(old, model, folder, sorted(folder.rglob("*.png")), embed), seen

    return run


def test_only_new_and_changed_files_are_read(folder, bring_up_to_date):
    index, changes, seen = bring_up_to_date(None)
    assert index.names == ("a.png", "b.png", "deep/c.png") and len(seen) == 4
    assert index.vectors.tolist() == [[1], [2], [3]]
    assert (changes.added, changes.kept) == (3, 0)
    assert changes.unreadable == {folder / "bad.png": "broken"}
    (folder / "b.png").write_text("22")
    (folder / "deep" / "c.png").unlink()
    (folder / "0.png").write_text("0")
    index, changes, seen = bring_up_to_date(index)
    assert seen == ["0.png", "b.png", "bad.png"]
    assert index.names == ("0.png", "a.png", "b.png") and index.vectors.tolist() == [[0], [1], [22]]
    assert str(changes) == "1 kept, 1 new, 1 changed, 1 removed"
    # The same size, another time.
    os.utime(folder / "a.png", ns=(1, 1))
    assert "a.png" in bring_up_to_date(index)[2]
    assert len(bring_up_to_date(index, "another model")[2]) == 4


def test_a_link_to_nothing_is_unreadable(folder, bring_up_to_date):
    index = bring_up_to_date(None)[0]
    (folder / "deep" / "c.png").unlink()
    for name in ("deep/c.png", "new.png"):
        (folder / name).symlink_to(folder / "nowhere.png")
    index, changes, seen = bring_up_to_date(index)
    assert index.names == ("a.png", "b.png") and seen == ["bad.png"]
    assert (changes.kept, changes.removed) == (2, 1)
    links = [folder / "deep" / "c.png", folder / "new.png"]
    assert [changes.unreadable[link] for link in links] == ["no such file"] * 2
    assert changes.unreadable[folder / "bad.png"] == "broken"


def test_files(folder, bring_up_to_date, tmp_path):
    path = tmp_path / "new" / "index.npz"
    assert read_index(path) == (None, "there is none yet")
    index = bring_up_to_date(None)[0]
    write_index(path, index)
    again, reason = read_index(path)
    assert reason == "" and again.names == index.names and again.model == "m"
    np.testing.assert_array_equal(again.stamps, index.stamps)
    np.testing.assert_array_equal(again.vectors, index.vectors)
    assert [p.name for p in path.parent.iterdir()] == ["index.npz"]
    for damage in (b"", b"not a zip", path.read_bytes()[:200]):
        path.write_bytes(damage)
        assert read_index(path)[0] is None and "is damaged" in read_index(path)[1]


def test_models_are_told_apart(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    first = model_fingerprint(tmp_path, "float32")
    assert first == model_fingerprint(tmp_path, "float32") != model_fingerprint(tmp_path, "bf16")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    second = model_fingerprint(tmp_path, "float32")
    (tmp_path / "processor_config.json").write_text("{ }")
    third = model_fingerprint(tmp_path, "float32")
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert len({first, second, third, model_fingerprint(tmp_path, "float32")}) == 4
