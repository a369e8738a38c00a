"""Labelled examples of unlike lengths, checked once, and put together to padded batches.

Names: n = examples, T = the padded length, N = classes, K = texts of one example (a pair and its
hard negatives).
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.loader import Batch

# In training the next is at most a quarter longer from 32 on: padding costs time at every step. An
# evaluation goes by length and is one pass, so that fewer shapes to compile are worth more.
LENGTH_BUCKETS = (
    *(16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512),
    *(640, 768, 1024, 1280, 1536, 2048),
)
EVAL_LENGTH_BUCKETS = tuple(32 * 2**i for i in range(11))  # to 32,768
IGNORED = -100  # the label of a token that has none

# {"input_ids": [1, 7, 2], "labels": 1}: what a text becomes, see `task_batches`.
Feature = Mapping[str, Any]
# The same as arrays: a list of K i32[t] for token fields, else i32[], f32[] or f32[N].
_Row = dict[str, Any]


# What a model said of an example, see `PreferenceFeatures.with_reference`.
REFERENCES = frozenset({"reference_chosen_logps", "reference_rejected_logps"})


class FeatureTable:
    """Features checked and held as arrays; arguments as in `task_batches`.

    Attributes:
      lengths: i64[n], tokens of each example's longest text.
      buckets: the values of T, in order.

    Raises:
      DataError: no features; features that differ in their fields, their kinds or in K; a row
        without tokens, longer than `max_length`, or with another number of token labels; a bucket
        below 1.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        pad_id: int,
        max_length: int | None = None,
        length_buckets: Sequence[int] = LENGTH_BUCKETS,
        pad_multiple: int = 1,
    ):
        if len(features) == 0:
            raise DataError("no examples to make batches of; check the data and what was left out")
        if pad_multiple < 1 or any(bucket < 1 for bucket in length_buckets):
            raise DataError(
                f"length_buckets={list(length_buckets)} and pad_multiple={pad_multiple} must be at "
                "least 1"
            )
        self._pad_id = pad_id
        self._rows = [_row(feature, i) for i, feature in enumerate(features)]
        self._nested = _is_nested(features[0])
        self._check_alike()
        self.lengths = np.array([max(map(len, row["input_ids"])) for row in self._rows])
        longest = int(self.lengths.max())
        limit = longest if max_length is None else max_length
        if longest > limit:
            raise DataError(
                f"example {int(self.lengths.argmax())} has {longest} tokens, more than "
                f"max_length={limit}; make the features with this max_length, which truncates"
            )
        buckets = {bucket for bucket in length_buckets if bucket < limit} | {limit}
        self.buckets = sorted({-(-bucket // pad_multiple) * pad_multiple for bucket in buckets})

    def __len__(self) -> int:
        return len(self._rows)

    def _check_alike(self) -> None:
        first = {key: _kind(value) for key, value in self._rows[0].items()}
        for i, row in enumerate(self._rows):
            kinds = {key: _kind(value) for key, value in row.items()}
            if kinds != first:
                field = next(k for k in {**first, **kinds} if kinds.get(k) != first.get(k))
                raise DataError(
                    f'example {i} has {kinds.get(field, "nothing")} as "{field}", example 0 has '
                    f"{first.get(field, 'nothing')}; give all examples the same fields"
                )

    def checksum(self) -> int:
        """Of every value of every example, in order, but for what a model said of them.

        Its log-probabilities differ in their last bits from one layout of devices to another.
        """
        total = zlib.crc32(self.lengths.tobytes())
        for row in self._rows:
            for name, value in row.items():
                if name in REFERENCES:
                    continue
                for array in value if isinstance(value, list) else [value]:
                    total = zlib.crc32(array.tobytes(), total)
        return total

    def padded_length(self, indices: np.ndarray) -> int:
        """T of a batch of these examples: the smallest bucket that holds them all."""
        longest = self.lengths[indices].max()
        return next(bucket for bucket in self.buckets if bucket >= longest)

    def collate(self, indices: Sequence[int], length: int, rows: int, filler: int) -> Batch:
        """A batch of `rows` rows and T = `length`: the examples of `indices`, then filling.

        Filling repeats example `filler` at example_weight 0 and without token labels. It is not
        all padding, because attention over nothing may be NaN, and NaN times weight 0 is NaN.
        """
        count = len(indices)
        chosen = [self._rows[i] for i in [*indices, *[filler] * (rows - count)]]
        batch: Batch = {}
        for field, value in chosen[0].items():
            values = [row[field] for row in chosen]
            if isinstance(value, list):
                fill = {"input_ids": self._pad_id, "labels": IGNORED}.get(field, 0)
                batch[field] = self._pad(values, length, fill)
                if field == "labels":
                    batch[field][count:] = IGNORED
            else:
                batch[field] = np.stack(values)
        ones = [[np.ones_like(ids) for ids in row["input_ids"]] for row in chosen]
        batch["attention_mask"] = self._pad(ones, length, 0)
        batch["example_weight"] = (np.arange(rows) < count).astype(np.float32)
        return batch

    def _pad(self, values: list[list[np.ndarray]], length: int, fill: int) -> np.ndarray:
        """i32[B, T], or i32[B, K, T] where examples have several texts."""
        padded = np.full((len(values), len(values[0]), length), fill, np.int32)
        for padded_row, row in zip(padded, values, strict=True):
            for k, tokens in enumerate(row):
                padded_row[k, : len(tokens)] = tokens
        return padded if self._nested else padded[:, 0]


def _is_nested(feature: Feature) -> bool:
    return np.ndim(feature["input_ids"][0]) > 0


def _row(feature: Feature, i: int) -> _Row:
    ids = feature.get("input_ids")
    if ids is None or len(ids) == 0 or (_is_nested(feature) and not all(map(len, ids))):
        raise DataError(f"example {i} has no tokens as input_ids; give every example some text")
    nested = _is_nested(feature)
    row: _Row = {}
    for field, value in feature.items():
        if nested and isinstance(value, list) and value and np.ndim(value[0]) > 0:
            row[field] = [np.asarray(tokens, np.int32) for tokens in value]
        else:
            row[field] = _values(value, field, i)
    sizes = [len(tokens) for tokens in row["input_ids"]]
    for field, value in row.items():
        if isinstance(value, list) and [len(tokens) for tokens in value] != sizes:
            raise DataError(
                f'example {i} has {sum(map(len, value))} values of "{field}" for {sum(sizes)} '
                "tokens; give one integer a token, or floats for values of the whole example"
            )
    return row


def _values(value: Any, field: str, i: int) -> Any:
    """[i32[t]] of a list of integers; else i32[], f32[] or f32[N]."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unlike lengths
        array = np.array(None)
    if array.dtype.kind not in "iubf" or array.ndim > 1:
        raise DataError(
            f'example {i} has "{field}"={value!r:.40}; a field is a number, a list of integers '
            "(one a token) or a list of floats"
        )
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return [array.astype(np.int32)] if array.ndim else array.astype(np.int32)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} lists of tokens" if len(value) > 1 else "a list of tokens"
    return f"{value.dtype}{list(value.shape) or ''}"
