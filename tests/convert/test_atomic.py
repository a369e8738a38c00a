import errno
import os

import pytest

import fmjax.convert.safetensors as format_module
from fmjax.convert import load_params, replacing, save_params
from fmjax.core.errors import CheckpointError


def contents(directory):
    return {str(p.relative_to(directory)): p.is_file() and p.read_bytes() for p in _all(directory)}


def _all(directory):
    return directory.rglob("*")


def full_disk(monkeypatch, after):
    """The disk fills up at the given tensor."""
    original = format_module._bytes_of
    count = iter(range(10**6))

    def bytes_of(item):
        if next(count) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(item)

    monkeypatch.setattr(format_module, "_bytes_of", bytes_of)


@pytest.mark.parametrize("after", [0, 4, 9])
@pytest.mark.parametrize("max_shard_size", [10**9, 300])
def test_a_full_disk_leaves_the_earlier_export_as_it_was(
    tmp_path, toy, monkeypatch, after, max_shard_size
):
    save_params(tmp_path / "out", toy.rows, toy.params(), max_shard_size)
    before = contents(tmp_path)
    full_disk(monkeypatch, after)
    with pytest.raises(CheckpointError, match="out: No space left on device; make room") as e:
        save_params(tmp_path / "out", toy.rows, toy.params(), 200)
    assert "\n" not in str(e.value)
    assert contents(tmp_path) == before
    load_params(tmp_path / "out", toy.rows, toy.abstract())


def test_a_full_disk_leaves_no_new_directory_behind(tmp_path, toy, monkeypatch):
    full_disk(monkeypatch, 2)
    with pytest.raises(CheckpointError, match="No space left"):
        save_params(tmp_path / "a" / "b", toy.rows, toy.params())
    assert contents(tmp_path) == {}


def test_an_interruption_leaves_the_earlier_export_as_it_was(tmp_path, toy, monkeypatch):
    save_params(tmp_path, toy.rows, toy.params())
    before = contents(tmp_path)
    monkeypatch.setattr(format_module, "_bytes_of", lambda _: (_ for _ in ()).throw(Interrupt))
    with pytest.raises(Interrupt):
        save_params(tmp_path, toy.rows, toy.params())
    assert contents(tmp_path) == before


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("failing", range(8))
def test_a_failure_while_files_are_moved_puts_the_old_ones_back(tmp_path, monkeypatch, failing):
    for name in ("config.json", "model.safetensors", "notes.txt"):
        (tmp_path / name).write_text("old")
    before = contents(tmp_path)
    replace, count = os.replace, iter(range(100))

    def sometimes(source, destination):
        if next(count) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", sometimes)
    names = ("config.json", "model.safetensors.index.json", "model-1.safetensors")
    try:
        with replacing(tmp_path, ["model.safetensors"]) as staging:
            for name in names:
                (staging / name).write_text("new")
    except CheckpointError:
        assert contents(tmp_path) == before
        assert failing < 5
    else:
        want = {name: b"new" for name in names} | {"notes.txt": b"old"}
        assert contents(tmp_path) == want


def test_old_files_that_cannot_be_put_back_are_kept(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("old")
    replace, count = os.replace, iter(range(100))

    def once(source, destination):
        if next(count):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", once)
    message = "what was there before lies in .*.replaced"
    with pytest.raises(CheckpointError, match=message), replacing(tmp_path) as staging:
        (staging / "config.json").write_text("new")
    assert b"old" in contents(tmp_path).values()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_drives_that_cannot_sync_are_written_all_the_same(tmp_path, monkeypatch, code):
    def fsync(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    if code == errno.EIO:
        with pytest.raises(CheckpointError, match="Input/output error"):
            write_one(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        write_one(tmp_path / "out")
        assert contents(tmp_path / "out") == {"a": b"new"}


def write_one(target):
    with replacing(target) as staging:
        (staging / "a").write_text("new")


def test_a_process_killed_while_files_are_moved_leaves_no_mixture(tmp_path, monkeypatch):
    """Whatever the moment, the directory holds files of one export only, or no config."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("old")
    replace = os.replace
    seen = []

    def watching(source, destination):
        replace(source, destination)
        seen.append({p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()})

    monkeypatch.setattr(os, "replace", watching)
    with replacing(tmp_path) as staging:
        for name in ("config.json", "model.safetensors"):
            (staging / name).write_text("new")
    assert len(seen) == 4
    for files in seen:
        assert "config.json" not in files or set(files.values()) == {"new"}


def test_stale_shards_go_and_other_files_stay(tmp_path, toy):
    save_params(tmp_path, toy.rows, toy.params(), max_shard_size=300)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "README.md").write_text("mine")
    save_params(tmp_path, toy.rows, toy.params())
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"adapter", "README.md", "model.safetensors"}
    save_params(tmp_path, toy.rows, toy.params(), max_shard_size=300)
    assert not (tmp_path / "model.safetensors").exists()
    load_params(tmp_path, toy.rows, toy.abstract())


def test_a_target_that_cannot_be_a_directory_raises(tmp_path, toy):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file is a file; give a directory"):
        save_params(tmp_path / "file", toy.rows, toy.params())
    with pytest.raises(CheckpointError, match="Not a directory"):
        save_params(tmp_path / "file" / "below", toy.rows, toy.params())


def test_exports_are_as_readable_as_other_files(tmp_path, toy):
    (tmp_path / "plain").write_text("")
    save_params(tmp_path / "out", toy.rows, toy.params())
    mode = (tmp_path / "out" / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode
