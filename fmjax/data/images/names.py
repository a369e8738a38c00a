"""Pictures by name: what `--data` understands where pictures are wanted."""

from collections.abc import Sequence
from pathlib import Path

from fmjax.core.errors import DataError
from fmjax.data.images import real
from fmjax.data.images.folders import ImageFolder, folder_splits
from fmjax.data.images.openmoji_tfds import openmoji
from fmjax.data.images.sources import SPLITS, ImageSource, hash_split
from fmjax.data.images.tables import SUFFIXES, TableImages
from fmjax.data.images.tar import TarImages
from fmjax.data.images.tfds_images import TfdsImages, has_split

HELD_OUT = 0.1
REAL = ("digits", "openmoji", "photographs")


def open_images(
    spec: str | Path,
    split: str = "all",
    *,
    held_out: float = HELD_OUT,
    class_names: Sequence[str] | None = None,
    mixed: bool = False,
) -> ImageSource:
    """The source that a name stands for.

    Args:
      spec: "digits", or "digits/12" for them anywhere in 12 × 12 pixels; "openmoji"; "photographs",
        or "photographs/64" for their tiles of 64 pixels;
        "tfds:NAME", or the directory of a prepared TFDS data set (`TfdsImages`); a directory of
        pictures (`ImageFolder`); .tsv, .csv or .jsonl (`TableImages`) or .tar files (`TarImages`),
        or a glob pattern of either. Ending in ":train", ":validation" or ":all", it says its
        split itself.
      split: "train", "validation" or "all". What has no splits of its own is split by a hash of
        its examples' names.
      held_out: the part of such a set that is the validation split.
      class_names: the classes, in order, for instance those of the training set. Files are
        numbered by them; other sets must have the very same.
      mixed: of a directory, see `ImageFolder`.

    Returns:
      A source; its `class_names` are empty where there are no labels.

    Raises:
      DataError: nothing has this name, it cannot be read, a bad split, or other classes.
    """
    spec, ending = split_of(spec)
    split = ending or split
    if split not in SPLITS:
        raise DataError(f'no split "{split}" of {spec}; there are {", ".join(SPLITS)}')
    source, divided = _open(spec, split, class_names, mixed)
    own = source.class_names
    if class_names is not None and own and tuple(class_names) != own:
        raise DataError(
            f"{spec} has the classes {_few(own)}, and not {_few(class_names)}; give a set with the "
            "same classes in the same order, or leave class_names out"
        )
    if divided or split == "all":
        return source
    train, validation = hash_split(source, held_out)
    return train if split == "train" else validation


def split_of(spec: str | Path) -> tuple[str, str]:
    """A name without the split that it says itself, and that split, or ""."""
    name, _, ending = str(spec).rpartition(":")
    return (name, ending) if name and ending in SPLITS else (str(spec), "")


def has_splits(spec: str | Path) -> bool:
    """Whether a set has a training split of its own; errors as `open_images`."""
    return _open(str(spec), "train", None, True)[1]


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} × {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _open(
    spec: str, split: str, class_names: Sequence[str] | None, mixed: bool
) -> tuple[ImageSource, bool]:
    """The source, and whether `split` has been seen to."""
    if spec == "digits":
        return real.digits(split), True
    if spec == "photographs":
        return real.photographs(), False
    kind, _, number = spec.partition("/")
    if kind == "digits" and number.isdecimal():
        return real.digits(split, int(number)), True
    if kind == "photographs" and number.isdecimal():
        return real.photographs(int(number)), False
    if spec == "openmoji":
        return openmoji(split), True
    path = Path(spec)
    if spec.startswith("tfds:") or (path / "dataset_info.json").is_file():
        return _tfds(spec.removeprefix("tfds:"), split)
    if (kind := _table_or_tar(spec)) is not None:
        return kind(spec, class_names=class_names), False
    if path.is_dir():
        divided = bool(folder_splits(path))
        part = split if divided else "all"
        return ImageFolder(path, part, class_names=class_names, mixed=mixed), divided
    raise DataError(
        f"{spec}: no pictures have this name; give a directory of pictures, .tar, .tsv or .jsonl "
        f"files, tfds:NAME, or one of "
        f"{', '.join(REAL)}"
    )


def _table_or_tar(spec: str) -> type[TableImages] | type[TarImages] | None:
    suffix = Path(spec.lower().removesuffix(".gz")).suffix
    if suffix == ".tar":
        return TarImages
    return TableImages if suffix in SUFFIXES else None


def _tfds(name: str, split: str) -> tuple[ImageSource, bool]:
    """`validation` is the set's own, else its `test`, else a part of `train`."""
    if split == "all":
        return TfdsImages(name, "all"), True
    held_out = next((s for s in ("validation", "test") if has_split(name, s)), None)
    if split == "validation" and held_out is not None:
        return TfdsImages(name, held_out), True
    return TfdsImages(name, "train"), held_out is not None
