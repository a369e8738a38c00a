"""The two small real corpora that ship with fmjax (licences: `corpora/README.md`)."""

import functools
import gzip
import hashlib
import itertools
from collections.abc import Sequence
from importlib import resources
from typing import TypeVar

from fmjax.core.errors import DataError

T = TypeVar("T")
VALIDATION_FRACTION = 0.05


def train_validation_split(
    items: Sequence[T], fraction: float = VALIDATION_FRACTION, seed: int = 0
) -> tuple[list[T], list[T]]:
    """Splits by a hash of seed and index: the same on every machine and version, order kept.

    `round(fraction · n)` items are held out, at least one if `fraction > 0` and there are two.

    Raises:
      DataError: a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation fraction {fraction} is not in [0, 1)")
    n = len(items)
    count = max(round(fraction * n), 1) if fraction > 0 and n > 1 else 0

    def rank(i: int) -> bytes:
        return hashlib.sha256(f"{seed}:{i}".encode()).digest()

    held_out = set(sorted(range(n), key=rank)[:count])
    train = [x for i, x in enumerate(items) if i not in held_out]
    return train, [items[i] for i in sorted(held_out)]


def _read(name: str) -> list[str]:
    packed = resources.files("fmjax.data").joinpath("corpora", name).read_bytes()
    return gzip.decompress(packed).decode("utf-8").splitlines()


@functools.cache
def _kjv() -> tuple[str, ...]:
    """One document a chapter: its verses, without their labels, run together as prose."""
    verses = [line.split(" ", 1) for line in _read("kjv.txt.gz")]
    chapters = itertools.groupby(verses, key=lambda v: v[0].rpartition(":")[0])
    return tuple(" ".join(text for _, text in group) for _, group in chapters)


@functools.cache
def _movie_reviews() -> tuple[tuple[float, str], ...]:
    rows = [line.split("\t", 1) for line in _read("movie_reviews.tsv.gz")[1:]]
    return tuple((float(rating), text) for rating, text in rows)


def load_corpus(name: str, split: str = "all") -> list:
    """A shipped corpus; the result is a source for `text_batches`.

    Args:
      name: "kjv", the King James Bible: 1,189 documents (`str`), a chapter each, 4.1 MB; or
        "movie_reviews": 8,000 examples `{"text": str, "rating": float}`, sentences from reviews
        with their mean human rating, −4 (negative) to 4 (positive).
      split: "all", "train" or "validation" (5 %, always the same).

    Raises:
      DataError: an unknown name or split.
    """
    if name == "kjv":
        items: list = list(_kjv())
    elif name == "movie_reviews":
        items = [{"text": text, "rating": rating} for rating, text in _movie_reviews()]
    else:
        raise DataError(f'no corpus "{name}"; there are "kjv" and "movie_reviews"')
    if split == "all":
        return items
    if split not in ("train", "validation"):
        raise DataError(f'no split "{split}"; there are "all", "train" and "validation"')
    train, validation = train_validation_split(items)
    return train if split == "train" else validation


def sentiment(examples: Sequence[dict]) -> list[dict]:
    """Rated examples as two classes: `label` 1 above 0.5, 0 below −0.5; the rest is left out."""
    return [{**e, "label": int(e["rating"] > 0)} for e in examples if abs(e["rating"]) > 0.5]
