"""Held-out examples, and texts that are in two places at once."""

import collections
import dataclasses
import hashlib
import math
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fmjax.core.errors import DataError
from fmjax.data.tasks.tables import Report

_BINS = 10  # strata of numbers

Text = str | tuple[str, ...]
Labelled = TypeVar("Labelled")


def stratified_split(
    labels: Sequence[Any], fraction: float = 0.1, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, each in order, with classes in the same proportions.

    Every class with two examples or more is on both sides, and one with a single example is
    trained on. Numbers (regression; the first, where a row has several) are split within each tenth
    of their ranks.
    Multi-label rows (0/1 each) are dealt out one label at a time, the rarest first, to the side
    that lacks more of it (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011), which comes near to
    the proportions but promises nothing for labels that always occur together with rarer ones.

    The same on every machine and version, from a hash of seed and index.

    Raises:
      DataError: a fraction outside (0, 1), or fewer than two examples.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction to hold out is {fraction}; choose one between 0 and 1")
    n = len(labels)
    if n < 2:
        raise DataError(f"{n} example(s) cannot be split; give at least two")
    shuffled = sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    several = isinstance(labels[0], (list, tuple))
    if several and labels[0] and isinstance(labels[0][0], float):
        labels, several = [row[0] for row in labels], False
    if several:
        held_out = _deal(labels, shuffled, fraction)
    else:
        strata: dict[Hashable, list[int]] = collections.defaultdict(list)
        names = _tenths(labels, fraction) if isinstance(labels[0], float) else labels
        for i in shuffled:
            strata[names[i]].append(i)
        counts = _quotas({name: len(rows) for name, rows in strata.items()}, fraction)
        held_out = {i for name, rows in strata.items() for i in rows[: counts[name]]}
    return [i for i in range(n) if i not in held_out], sorted(held_out)


def _tenths(values: Sequence[float], fraction: float) -> list[int]:
    n = len(values)
    # Fewer strata where there is not one to hold out, or to train on, for each of ten.
    count = max(min(_BINS, int(fraction * n), int((1 - fraction) * n)), 1)
    strata = [0] * n
    for rank, i in enumerate(sorted(range(n), key=lambda i: (values[i], i))):
        strata[i] = rank * count // n
    return strata


def _quotas(sizes: Mapping[Hashable, int], fraction: float) -> dict[Hashable, int]:
    """How many of each stratum to hold out: by largest remainder, 1 … size − 1 of each."""
    exact = {name: fraction * size for name, size in sizes.items()}
    quotas = {name: math.floor(share) for name, share in exact.items()}
    missing = round(fraction * sum(sizes.values())) - sum(quotas.values())
    by_remainder = sorted(sizes, key=lambda name: quotas[name] - exact[name])  # stable
    for name in by_remainder[: max(missing, 0)]:
        quotas[name] += 1
    return {
        name: min(max(quotas[name], 1), size - 1) if size > 1 else 0 for name, size in sizes.items()
    }


def _deal(labels: Sequence[Sequence[int]], shuffled: list[int], fraction: float) -> set[int]:
    """Iterative stratification to two sides; rows without a label are a label of their own."""
    of_row = {i: [k for k, on in enumerate(labels[i]) if on] or [-1] for i in shuffled}
    sizes = collections.Counter(k for ks in of_row.values() for k in ks)
    wanted = dict(_quotas(sizes, fraction))  # still to hold out of each label
    left = dict(sizes)  # rows of each label that are not dealt out yet
    waiting = dict.fromkeys(shuffled)
    held_out = set()
    while waiting:
        rarest = min((k for k in left if left[k]), key=lambda k: (left[k], k))
        for i in [i for i in waiting if rarest in of_row[i]]:
            # Held out while that is what the label lacks more of, in proportion.
            hold = wanted[rarest] * (1 - fraction) > (left[rarest] - wanted[rarest]) * fraction
            if hold or wanted[rarest] == left[rarest]:
                held_out.add(i)
            for k in of_row[i]:
                left[k] -= 1
                wanted[k] -= i in held_out
            del waiting[i]
    return held_out


class _Blanks(dict):
    """`str.translate` table: punctuation becomes a blank."""

    def __missing__(self, code: int) -> int:
        self[code] = 32 if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_BLANKS = _Blanks()


def normalise(text: str) -> str:
    """By what texts are held to be the same: NFKC, case folded, without punctuation, and with
    single blanks. Text that is nothing but punctuation keeps it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_BLANKS).split()) or " ".join(folded.split())


def _key(text: Text) -> Hashable:
    return normalise(text) if isinstance(text, str) else tuple(map(normalise, text))


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Texts that occur more than once, after `normalise`.

    Attributes:
      test: rows of the test data whose text is also in the training data.
      train: rows of the training data whose text is also in the test data.
      repeated: rows of the training data that repeat an earlier row of it.
      conflicting: rows of the training data with the same text but unlike labels, a group a text.
      sizes: rows of the training and of the test data.
    """

    test: tuple[int, ...]
    train: tuple[int, ...]
    repeated: tuple[int, ...]
    conflicting: tuple[tuple[int, ...], ...]
    sizes: tuple[int, int]

    def __str__(self) -> str:
        n, m = self.sizes
        rows = sum(map(len, self.conflicting))
        return (
            f"{len(self.test)} of {m} test rows are also in the training data ({len(self.train)} "
            f"of its {n} rows); {len(self.repeated)} training rows repeat an earlier one; {rows} "
            f"training rows of {len(self.conflicting)} texts have conflicting labels"
        )


def overlap(
    train: Sequence[Text], test: Sequence[Text], train_labels: Sequence[Any] | None = None
) -> Overlap:
    """What train and test have in common, and what train has twice.

    Args:
      train, test: texts, or tuples of texts (pairs are the same if both of their texts are).
      train_labels: of `train`; without them no conflicts are looked for.
    """
    rows: dict[Hashable, list[int]] = collections.defaultdict(list)
    for i, text in enumerate(train):
        rows[_key(text)].append(i)
    test_keys = [_key(text) for text in test]
    shared = rows.keys() & set(test_keys)
    conflicting = () if train_labels is None else tuple(
        tuple(group) for group in rows.values() if any(
            train_labels[i] != train_labels[group[0]] for i in group
        )
    )  # fmt: skip
    return Overlap(
        test=tuple(i for i, key in enumerate(test_keys) if key in shared),
        train=tuple(sorted(i for key in shared for i in rows[key])),
        repeated=tuple(sorted(i for group in rows.values() for i in group[1:])),
        conflicting=conflicting,
        sizes=(len(train), len(test)),
    )


def leave_out(data: Labelled, reasons: Mapping[str, Iterable[int]]) -> Labelled:
    """Data without some of its rows, and with them counted in its report.

    Args:
      data: a Classification, Pairs, or the like: with `select`, `len()` and a `report`.
      reasons: why → which rows, for example `{"also in the test data": overlap.train}`. A row
        counts under the first reason that has it.

    Raises:
      DataError: nothing would be left.
    """
    gone: set[int] = set()
    counts = {}
    for reason, rows in reasons.items():
        new = set(rows) - gone
        counts[reason] = len(new)
        gone |= new
    kept = [i for i in range(len(data)) if i not in gone]
    report: Report = data.report.and_dropped(counts)
    if not kept:
        raise DataError(f"no row would be left: {report}; keep some of them")
    return dataclasses.replace(data.select(kept), report=report)
