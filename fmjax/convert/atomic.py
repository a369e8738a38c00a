"""Directories that change all at once or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmjax.core.errors import CheckpointError

REPLACED = ".replaced"


@contextlib.contextmanager
def replacing(target: str | Path, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Gives an empty directory to fill; its files move into `target` when the block succeeds.

    The staging directory lies inside `target`, so that the move is a rename on every file system.
    Nothing of an earlier export is touched before all new files are on the disk. If the block
    raises, the staged files go, and `target` too if it was not there before. In the moment of the
    move, old files leave before new ones come, the config last: a process killed in between
    leaves a directory that fails to load, never a mixture of two exports.

    Args:
      target: the directory, made if needed.
      owned: glob patterns of files that belong to the export; those of an earlier one that are
        not written again are removed.

    Raises:
      CheckpointError: the directory cannot be written, for example because the disk is full.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; give a directory to write to")
    made = [p for p in (target, *target.parents) if not p.exists()]
    staging: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=target))
        yield staging
        _commit(staging, target, owned)
    except OSError as e:
        before = "what was there before is unchanged"
        if staging is not None and (staging / REPLACED).exists():
            before = f"what was there before lies in {staging / REPLACED}"
        raise CheckpointError(
            f"cannot write {target}: {e.strerror or e}; make room or choose another directory "
            f"({before})"
        ) from e
    finally:
        # Old files are still inside only if they could not be put back: then they stay there.
        if staging is not None and not (staging / REPLACED).exists():
            shutil.rmtree(staging, ignore_errors=True)
        for directory in made:
            with contextlib.suppress(OSError):  # not empty: the export succeeded
                directory.rmdir()


def _commit(staging: Path, target: Path, owned: Sequence[str]) -> None:
    new = [p.name for p in staging.iterdir()]
    for name in new:
        _sync(staging / name)
    stale = {p.name for pattern in owned for p in target.glob(pattern) if p.is_file()}
    displaced = stale.union(name for name in new if (target / name).exists())
    old = staging / REPLACED
    old.mkdir()
    moves = [(target / n, old / n) for n in sorted(displaced, key=_moment, reverse=True)]
    moves += [(staging / n, target / n) for n in sorted(new, key=_moment)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, destination in moves:
            os.replace(source, destination)
            done.append((source, destination))
        _sync(target)
    except BaseException:
        for source, destination in reversed(done):
            os.replace(destination, source)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _moment(name: str) -> tuple[bool, bool]:
    """Comes last and goes first: what a reader opens to find the rest."""
    return name.endswith("config.json"), name.endswith(".index.json")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        # Some mounted network drives cannot; a full disk or a broken one must still be heard.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
