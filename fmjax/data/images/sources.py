"""Random-access sources of pictures, and what belongs to all of them: names, classes, splits.

An example is a dict: `image` (an encoded file's bytes, its path, or an array), and where there are
such, `label` (int), `caption` (str) and `captions` (several, the first of which is `caption`).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.images.decode import ImageError

SPLITS = ("train", "validation", "all")
ANY_NAME = "surrogatepass"  # how names become bytes to hash: those of files may be no UTF-8


class ImageSource:
    """Examples by index. Subclasses give `__len__` and `__getitem__`.

    Attributes:
      class_names: of labels 0, 1, …; empty without labels.
    """

    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        raise TypeError(f"{type(self).__name__} must define __getitem__")

    def name(self, index: int) -> str:
        """Where example `index` comes from, for messages: a file, or a place in one."""
        return f"example {index}"

    def group(self, index: int) -> str:
        """Examples of one group must not be on both sides of a split. Default: each its own."""
        return self.name(index)

    def facts(self, index: int) -> str:
        """What is known of an example beside its group without reading a file: label, captions.

        Part of the checksum that tells a run's data from other data. Default: nothing.
        """
        return ""

    def select(self, indices: Iterable[int]) -> "ImageSource":
        """The source of some of the examples, in the order of `indices`."""
        return _Selection(self, np.fromiter(indices, np.int64))

    def sample(self, count: int, seed: int = 0) -> "ImageSource":
        """`count` of the examples drawn by chance, in their own order; all if there are no more.

        What comes first in a folder is of its first classes only.
        """
        if count >= len(self):
            return self
        return self.select(np.sort(np.random.RandomState(seed).permutation(len(self))[:count]))


class _Selection(ImageSource):
    def __init__(self, source: ImageSource, indices: np.ndarray):
        self._source, self._indices = source, indices
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._source[int(self._indices[index])]

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def group(self, index: int) -> str:
        return self._source.group(int(self._indices[index]))

    def facts(self, index: int) -> str:
        return self._source.facts(int(self._indices[index]))


class Examples(ImageSource):
    """Examples held in memory.

    Args:
      examples: dicts as above; bare pictures stand for `{"image": …}`.
      class_names: of the labels.
      names: of the examples, for messages and splits; default "example 0", ….
      groups: see `ImageSource.group`; default the names.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        class_names: Sequence[str] = (),
        names: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ):
        self._examples, self.class_names = examples, tuple(class_names)
        self._names, self._groups = names, groups

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        example = self._examples[index]
        return example if isinstance(example, Mapping) else {"image": example}

    def name(self, index: int) -> str:
        return super().name(index) if self._names is None else self._names[index]

    def group(self, index: int) -> str:
        return self.name(index) if self._groups is None else self._groups[index]

    def facts(self, index: int) -> str:
        example = self._examples[index]
        if not isinstance(example, Mapping):
            return ""
        return repr([example.get(field) for field in ("label", "caption", "captions")])


class Concatenated(ImageSource):
    """Several sources end to end.

    Raises:
      DataError: no source, or sources of unlike classes.
    """

    def __init__(self, sources: Sequence[ImageSource]):
        if not sources:
            raise DataError("an empty list of image sources; give at least one")
        classes = {source.class_names for source in sources}
        if len(classes) > 1:
            a, b = sorted(classes)[:2]
            raise DataError(
                f"the image sources have unlike classes ({list(a)[:5]} and {list(b)[:5]}); give "
                "sources with the same class names in the same order"
            )
        self._sources, self.class_names = list(sources), classes.pop()
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[ImageSource, int]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[which], int(index - (self._ends[which - 1] if which else 0))

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        source, at = self._find(index)
        return source[at]

    def name(self, index: int) -> str:
        source, at = self._find(index)
        return source.name(at)

    def group(self, index: int) -> str:
        source, at = self._find(index)
        return source.group(at)

    def facts(self, index: int) -> str:
        source, at = self._find(index)
        return source.facts(at)


def caption_table(source: ImageSource) -> tuple[list[str], np.ndarray]:
    """Every caption of every example, and which one each is of: texts, i64[T].

    For retrieval with several captions a picture. Empty ones, and what is no text, are left out.

    Raises:
      ImageError: an example that cannot be read, by its name.
    """
    texts, owners = [], []
    for i in range(len(source)):
        try:
            example = source[i]
        except ImageError as e:
            raise ImageError(e.reason, e.detail, source.name(i)) from e
        several = example.get("captions") or (example.get("caption"),)
        kept = [text for text in several if isinstance(text, str) and text.strip()]
        texts += kept
        owners += [i] * len(kept)
    return texts, np.array(owners, np.int64)


def hash_split(
    source: ImageSource, fraction: float = 0.1, seed: int = 0
) -> tuple[ImageSource, ImageSource]:
    """(train, validation): whole groups, by a hash of seed and group; the same everywhere.

    Groups are held out until there are `round(fraction · n)` examples, at least one; both keep the
    order of the source.

    Raises:
      DataError: a fraction outside (0, 1), or fewer than two groups.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction to hold out is {fraction}; choose one between 0 and 1")
    groups = [source.group(i) for i in range(len(source))]
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    if len(sizes) < 2:
        raise DataError(f"{len(sizes)} image(s) cannot be split; give at least two")

    def rank(group: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:{group}".encode(errors=ANY_NAME)).digest(), group

    ranked = sorted(sizes, key=rank)
    wanted, held_out, count = max(round(fraction * len(groups)), 1), set(), 0
    for group in ranked[:-1]:
        if count >= wanted:
            break
        held_out.add(group)
        count += sizes[group]
    train = [i for i, group in enumerate(groups) if group not in held_out]
    return source.select(train), source.select(
        i for i, group in enumerate(groups) if group in held_out
    )
