"""One example as one row of a batch, and what happens where there is no making one of it.

Names: S = image_size, T = max_length.
"""

import collections
import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmjax.core.errors import DataError, TokenizerError
from fmjax.data.encoding import encode
from fmjax.data.images.decode import ImageError, check_limits, decode_image
from fmjax.data.images.sources import ImageSource
from fmjax.data.loader import derived_seed
from fmjax.data.tokenizer import Tokenizer

Row = dict[str, np.ndarray]
_ENOUGH = 100  # unusable examples, from which on they must not be the majority


@dataclasses.dataclass(frozen=True)
class Captions:
    """How captions become ids.

    Args:
      tokenizer: an HFTokenizer or SentencePieceTokenizer, with its special tokens; a long caption
        loses tokens before the last special one. Rows are filled with its padding, else its EOS.
      max_length: T.
      attention_mask: False leaves the mask out of the batches (SigLIP attends to padding).
    """

    tokenizer: Tokenizer
    max_length: int
    attention_mask: bool = True

    def row(self, caption: Any) -> Row:
        """`input_ids` (and `attention_mask`) i32[T] of one caption."""
        if caption is None:
            raise ImageError("no caption")
        if isinstance(caption, bytes):
            raise ImageError("unusable caption", "neither text in UTF-8 nor JSON")
        if not isinstance(caption, str) or not caption.strip():
            raise ImageError("empty caption")
        try:
            caption.encode()
        except UnicodeEncodeError as e:  # as JSON's "\ud83d" is without its other half
            raise TokenizerError("half a character in the caption; repair its encoding") from e
        ids = encode(self.tokenizer, caption, max_length=self.max_length).ids
        return self._padded(ids)

    @property
    def empty(self) -> Row:
        return self._padded([])

    def _padded(self, ids: list[int]) -> Row:
        tokenizer, gap = self.tokenizer, self.max_length - len(ids)
        fill = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
        )
        row = {"input_ids": np.array(ids + [fill] * gap, np.int32)}
        if self.attention_mask:
            row["attention_mask"] = np.array([1] * len(ids) + [0] * gap, np.int32)
        return row


class Rows:
    """Rows of a source's examples. What cannot be used is remembered, with the reason.

    Args:
      source: of n examples.
      image_size: S.
      labels: whether rows have `labels`.
      captions: None for rows without.
      on_bad: "skip" or "error".
      max_pixels, background: see `decode_image`.
      replace: whether another example stands in for one that is skipped, rather than an empty row.
      seed: which of several captions is taken in which epoch; None: always the first. Those that
        cannot be used are passed over.

    Raises:
      DataError: no examples, or an argument out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int,
        *,
        labels: bool,
        captions: Captions | None,
        on_bad: str,
        max_pixels: int,
        background: tuple[int, int, int],
        replace: bool,
        seed: int | None,
    ):
        if len(source) == 0:
            raise DataError("an image source without examples; give at least one picture")
        if on_bad not in ("skip", "error"):
            raise DataError(f'on_bad="{on_bad}" is unknown; use "skip" or "error"')
        check_limits(image_size, max_pixels)
        self._source, self._image_size, self._labels = source, image_size, labels
        self._captions, self._on_bad, self._replace, self._seed = captions, on_bad, replace, seed
        self._decoding = {"max_pixels": max_pixels, "background": background}
        self._bad: dict[int, ImageError] = {}
        self._good = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    @property
    def empty(self) -> Row:
        """A row that only fills up: example_weight 0."""
        row = self._row(np.zeros((self._image_size, self._image_size, 3), np.uint8), 0.0)
        if self._labels:
            row["labels"] = np.int32(0)
        return row | ({} if self._captions is None else self._captions.empty)

    def row(self, order: np.ndarray, at: int, epoch: int) -> Row:
        """The row of example `order[at]`.

        Raises:
          ImageError: it cannot be used, and `on_bad` is "error".
          DataError: nothing, or the smaller part, can be used.
        """
        n = len(order)
        row = self._usable(int(order[at]), epoch)
        if row is not None:
            return row
        if not self._replace:
            return self.empty
        # Half an epoch away, as its neighbours are in the same batch: a pair that stands there
        # twice would be its own negative.
        for step in range(n):
            row = self._usable(int(order[(at + n // 2 + step) % n]), epoch)
            if row is not None:
                return row
        raise DataError(f"none of the {n} examples can be used: {self.report()}")

    def _usable(self, index: int, epoch: int) -> Row | None:
        if index in self._bad:
            return None
        try:
            row = self._read(index, epoch)
        except ImageError as e:
            bad = ImageError(e.reason, e.detail, self._source.name(index))
            if self._on_bad == "error":
                raise bad from e
            with self._lock:
                self._bad[index] = bad
                if len(self._bad) >= _ENOUGH and len(self._bad) > self._good:
                    raise DataError(
                        f"most examples cannot be used ({self._good} can): {self.report()}; check "
                        "the data"
                    ) from e
            return None
        with self._lock:
            self._good += 1
        return row

    def _read(self, index: int, epoch: int) -> Row:
        try:
            example = self._source[index]
        except ImageError:
            raise
        except Exception as e:  # a source may read from a disk, an archive or a network
            raise ImageError("unreadable", " ".join(str(e).split())[:120]) from e
        # What takes no decoding first.
        extra: Row = {}
        if self._labels:
            extra["labels"] = self._label(example)
        if self._captions is not None:
            extra |= self._caption(self._captions, example, index, epoch)
        if example.get("image") is None:
            raise ImageError("no image")
        picture = decode_image(example["image"], max_size=self._image_size, **self._decoding)
        return self._row(picture, 1.0) | extra

    def _row(self, picture_HWC: np.ndarray, weight: float) -> Row:
        height, width, _ = picture_HWC.shape
        image = np.zeros((self._image_size, self._image_size, 3), np.uint8)
        image[:height, :width] = picture_HWC
        return {
            "image": image,
            "image_size": np.array([height, width], np.int32),
            "example_weight": np.float32(weight),
        }

    def _label(self, example: Mapping[str, Any]) -> np.int32:
        label = example.get("label")
        if label is None:
            raise ImageError("no label")
        names = self._source.class_names
        if not 0 <= int(label) < (len(names) or 2**31):
            raise ImageError("label out of range", f"{label} of {len(names)} classes")
        return np.int32(label)

    def _caption(
        self, captions: Captions, example: Mapping[str, Any], index: int, epoch: int
    ) -> Row:
        """Of the caption of this epoch, or of the next one of several that can be used."""
        several = list(example.get("captions") or [example.get("caption")])
        # Whether an example is bad must not hang on which caption is drawn: a resumed run has not
        # drawn the earlier ones.
        said = [c for c in several if isinstance(c, str) and c.strip()] or several[:1]
        first = 0
        if self._seed is not None and len(said) > 1:
            first = derived_seed(self._seed, "caption", epoch, index) % len(said)
        for caption in (*said[first:], *said[:first]):
            try:
                return captions.row(caption)
            except TokenizerError as e:
                error = e
        raise ImageError("unusable caption", str(error)[:120]) from error

    @property
    def skipped(self) -> dict[str, int]:
        """Reason → number of examples, the most frequent first, then that of the first example."""
        # Not in the order in which they were found, which is that of the threads.
        found = sorted(list(self._bad.items()))
        return dict(collections.Counter(e.reason for _, e in found).most_common())

    def report(self) -> str:
        """One line on what was left out, with the first of each reason; "" if nothing."""
        first: dict[str, ImageError] = {}
        for _, error in sorted(list(self._bad.items())):
            first.setdefault(error.reason, error)
        parts = [
            f"{count} × {reason} (e.g. {first[reason].name})"
            for reason, count in self.skipped.items()
        ]
        return f"left out of {len(self)} examples: {'; '.join(parts)}" if parts else ""
