"""Directories of pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.images.decode import SUFFIXES
from fmjax.data.images.sources import ImageSource

_HELD_OUT_NAMES = ("validation", "val", "valid", "test")  # the first that is there


class ImageFolder(ImageSource):
    """Picture files below a directory, read when they are asked for.

    Where the directory has sub-directories, the first one on a file's path is its class, and
    classes are numbered in the order of their names; a flat directory has no labels. If `train` and
    one of `validation`, `val`, `valid` and `test` are among the sub-directories, they are the
    splits and hold the classes.

    Args:
      directory: hidden files, and files without a picture's suffix, are passed over.
      split: "train", "validation" or "all". Directories without splits have only "all".
      class_names: the classes in this order, rather than those that are there in their own.
      mixed: pictures may lie beside the sub-directories, which then are no classes.

    Raises:
      DataError: no such directory, one that cannot be listed, no pictures in it, pictures beside
        the classes' directories, a split that it does not have, or a class that is not in
        `class_names`.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str = "all",
        *,
        class_names: Sequence[str] | None = None,
        mixed: bool = False,
    ):
        root = Path(directory)
        if not root.is_dir():
            raise DataError(f"{root}: no such directory; give one with pictures in it")
        names = folder_splits(root)
        if split != "all" and not names:
            raise DataError(f'{root} has no directories of splits; read it with split="all"')
        # Paths are strings from here on: there can be millions of them.
        found = {top: _pictures(root, top) for top in names.values() or [""]}
        if mixed and any(flat and deep for flat, deep in found.values()):
            found = {top: (sorted(flat + deep), []) for top, (flat, deep) in found.items()}
        depth = 1 if names else 0  # at which the class stands in a path
        classes = sorted({path.split("/")[depth] for _, deep in found.values() for path in deep})
        if class_names is not None and (new := [c for c in classes if c not in class_names]):
            raise DataError(
                f'{root}: the class "{new[0]}" is none of {", ".join(class_names)}; rename the '
                "directory, or give other class_names"
            )
        classes = classes if class_names is None or not classes else list(class_names)
        numbers = {name: i for i, name in enumerate(classes)}
        self._root, self.class_names = root, tuple(classes)
        self._paths: list[str] = []
        self._labels: list[int] = []
        for top, (flat, deep) in found.items():
            if classes and flat:
                raise DataError(
                    f"{root / flat[0]} lies beside the directories of classes "
                    f"({', '.join(classes[:5])}); move it into the one of its class"
                )
            if split == "all" or top == names[split]:
                self._paths += flat + deep
                self._labels += [numbers[path.split("/")[depth]] for path in deep]
        if not self._paths:
            remedy = "a directory of files such as .png and .jpg"
            if any(root.glob("*.[tT][aA][rR]")):
                remedy = f'its archives, "{root}/*.tar"'
            raise DataError(f"{root}: no pictures there; give {remedy}")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"image": self._root / self._paths[index]}
        return example | ({"label": self._labels[index]} if self._labels else {})

    def name(self, index: int) -> str:
        return str(self._root / self._paths[index])

    def group(self, index: int) -> str:
        # Not the whole path, so that a set is split alike wherever it lies.
        return self._paths[index]


def folder_splits(root: Path) -> dict[str, str]:
    """Split → name of its directory, if `root` has a directory for each; else {}."""
    held_out = [name for name in _HELD_OUT_NAMES if (root / name).is_dir()]
    if not (root / "train").is_dir() or not held_out:
        return {}
    return {"train": "train", "validation": held_out[0]}


def unlistable(error: OSError) -> None:
    """For `os.walk`, which would pass over what it cannot list, and a class with it.

    Raises:
      DataError: names the folder.
    """
    raise DataError(
        f"{error.filename}: the folder cannot be listed ({error.strerror}); check its permissions"
    ) from error


def _pictures(root: Path, top: str) -> tuple[list[str], list[str]]:
    """Picture files in `root / top` itself, and below it, as paths from `root`, sorted."""
    flat, deep = [], []
    start = os.path.join(root, top)
    been = set()  # links are followed, but not round in circles
    for directory, below, files in os.walk(start, onerror=unlistable, followlinks=True):
        real = os.path.realpath(directory)
        below[:] = [] if real in been else [name for name in below if not name.startswith(".")]
        if real in been:
            continue
        been.add(real)
        place = os.path.relpath(directory, root)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                path = name if place == "." else f"{place}/{name}".replace(os.sep, "/")
                (flat if directory == start else deep).append(path)
    return sorted(flat), sorted(deep)
