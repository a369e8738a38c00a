"""Image files for the commands: found, decoded in threads, put into batches of one shape.

Shapes: B rows of a batch, H × W pixels, C channels.
"""

import collections
import concurrent.futures
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.images import ImageError, decode_image
from fmjax.data.images.decode import SUFFIXES
from fmjax.data.images.folders import unlistable

_SHOWN = 3
"""Files that are named when some cannot be read."""


@dataclasses.dataclass
class Read:
    """What became of files: numbers of those in the batches, and the reasons of the others."""

    numbers: list[int] = dataclasses.field(default_factory=list)
    unreadable: dict[Path, str] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Raises DataError if no file could be read."""
        if not self.numbers:
            file, reason = next(iter(self.unreadable.items()))
            raise DataError(f"no image can be read; {file}: {reason}")


def find_images(places: Sequence[Path]) -> list[Path]:
    """Image files, by their suffixes, in the order of the places and of their paths; each once.

    Args:
      places: files, and folders, which are searched to the bottom; hidden files and folders in
        them, and links to folders, are passed over.

    Raises:
      DataError: nothing at a place, no image, or a folder that cannot be listed.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_file():
            found[place] = None
            continue
        if not place.is_dir():
            raise DataError(f"{place}: no such file or folder; give images or folders of images")
        inside = []
        for top, folders, files in os.walk(place, onerror=unlistable):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside += [
                Path(top, name)
                for name in files
                if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
            ]
        found |= dict.fromkeys(sorted(inside))
    if not found:
        raise DataError(
            f"{', '.join(map(str, places))}: no image there; fmjax reads "
            f"{', '.join(sorted(s.removeprefix('.') for s in SUFFIXES))}"
        )
    return list(found)


def read_image(file: Path) -> np.ndarray:
    """u8[H, W, 3], upright.

    Raises:
      ImageError: a file that cannot be read, see `fmjax.data.images.decode_image`.
    """
    return decode_image(file)


def plain(text: str) -> str:
    """Text that is UTF-8: bytes of file names that are not become \\udc80 … \\udcff.

    In JSON that is how such a name is written, and read again.
    """
    return text.encode(errors="backslashreplace").decode()


def pixel_batches(
    files: Sequence[Path],
    process: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    read: Read,
    advance: Callable[[int], None] = lambda files: None,
) -> Iterator[Mapping[str, Any]]:
    """Batches of pixel_values f32[B, H, W, C] and example_weight f32[B], 0 on rows that fill up.

    What cannot be read is left out. Files are decoded ahead, at most two batches of them.

    Args:
      files: of images.
      process: u8[H, W, 3] → f32[H, W, C], of one size for all images.
      batch_size: B.
      read: is told what became of each file.
      advance: is told the number of files that were looked at.

    Raises:
      DataError: images that are left in different sizes.
    """
    rows: list[np.ndarray] = []
    shape: tuple[int, ...] | None = None
    seen = 0
    for number, result in enumerate(_ahead(files, process, 2 * batch_size)):
        seen += 1
        if isinstance(result, ImageError):
            reason = result.reason + (f" ({result.detail})" if result.detail else "")
            read.unreadable[files[number]] = reason
            continue
        shape = shape or result.shape
        if result.shape != shape:
            raise DataError(
                f"{files[number]}: the model's preprocessing leaves images in different sizes "
                f"({list(result.shape)} after {list(shape)}); let preprocessor_config.json "
                "resize or crop to one size"
            )
        rows.append(result)
        read.numbers.append(number)
        if len(rows) == batch_size:
            yield _batch(rows, batch_size)
            advance(seen)
            rows, seen = [], 0
    if rows:
        yield _batch(rows, batch_size)
    advance(seen)


def _batch(rows: list[np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    filled = rows + [np.zeros_like(rows[0])] * (batch_size - len(rows))
    weights = np.arange(batch_size) < len(rows)
    return {"pixel_values": np.stack(filled), "example_weight": weights.astype(np.float32)}


def _ahead(
    files: Sequence[Path], process: Callable[[np.ndarray], np.ndarray], number: int
) -> Iterator[np.ndarray | ImageError]:
    """Pixels or errors in the order of the files, so many of which are in work at once."""

    def load(file: Path) -> np.ndarray | ImageError:
        try:
            return np.asarray(process(read_image(file)), np.float32)
        except ImageError as e:
            return e

    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        waiting: collections.deque[Any] = collections.deque()
        try:
            for file in files:
                waiting.append(pool.submit(load, file))
                if len(waiting) >= number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def report_unreadable(unreadable: Mapping[Path, str]) -> None:
    """Says on standard error how many files were left out, and names some."""
    if not unreadable:
        return
    named = [f"{file} ({reason})" for file, reason in list(unreadable.items())[:_SHOWN]]
    more = ", …" if len(unreadable) > _SHOWN else ""
    print(
        f"{len(unreadable):,} images could not be read: {', '.join(named)}{more}", file=sys.stderr
    )
