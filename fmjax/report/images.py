"""Images in pages and as files: grids, heat over an image, sheets of tiles.

An image is u8 [H, W, 3], or [H, W] where it is grey.
"""

import base64
import dataclasses
import io
import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

_SMALL = 64
"""Up to this side images are shown pixel by pixel and kept exactly; photographs become JPEG."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """An image of a sheet.

    Attributes:
      image: u8 [H, W, 3] or [H, W].
      caption: a line or two under it; lines are split at "\\n".
      kind: "query" frames the image that the others answer, "wrong" fades it.
    """

    image: Any
    caption: str = ""
    kind: str = ""


def image(pixels: Any, alternative: str) -> str:
    """An `<img>` that holds its data. `alternative` says in words what it shows."""
    pixels = _checked(pixels)
    small = max(pixels.shape[:2]) <= _SMALL
    data = base64.b64encode(_encoded(pixels, "png" if small else "jpeg")).decode()
    kind = "png" if small else "jpeg"
    style = ' class="pixels"' if small else ""
    return f'<img{style} src="data:image/{kind};base64,{data}" alt="{escape(alternative)}">'


def sheet(rows: Sequence[Sequence[Tile]], *, longest: int = 224) -> str:
    """Tiles row by row, such as a query and its nearest neighbours.

    Args:
      rows: each begins a new line of the page.
      longest: pixels to which the longer side of larger images is reduced.
    """
    return "".join(
        f'<div class="sheet">{"".join(_tile(tile, longest) for tile in row)}</div>' for row in rows
    )


def _tile(tile: Tile, longest: int) -> str:
    lines = "<br>".join(escape(line) for line in tile.caption.split("\n"))
    caption = f"<figcaption>{lines}</figcaption>" if tile.caption else ""
    kind = f' class="{escape(tile.kind)}"' if tile.kind else ""
    alternative = tile.caption.replace("\n", ", ")
    return f"<figure{kind}>{image(reduced(tile.image, longest), alternative)}{caption}</figure>"


def grid(rows: Sequence[Sequence[Any]], gap: int = 4, paper: int = 255) -> np.ndarray:
    """u8 [H, W, 3]: images in rows and columns on a plain ground.

    Args:
      rows: of images of any size; each stands at the top left of its cell.
      gap: pixels between cells.
      paper: grey level of the ground.
    """
    cells = [[_checked(pixels) for pixels in row] for row in rows]
    columns = max((len(row) for row in cells), default=0)
    if not columns:
        raise ValueError("a grid needs at least one image")
    height = max(c.shape[0] for row in cells for c in row)
    width = max(c.shape[1] for row in cells for c in row)
    shape = (len(cells) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    out = np.full(shape, paper, np.uint8)
    for r, row in enumerate(cells):
        for c, pixels in enumerate(row):
            y, x = r * (height + gap), c * (width + gap)
            out[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return out


def heat(pixels: Any, values: Any, strength: float = 0.65) -> np.ndarray:
    """u8 [H, W, 3]: an image under the colours of a map, from dark (lowest) to light (highest).

    Args:
      pixels: the image.
      values: f[h, w], stretched over it smoothly.
      strength: of the colours; 0 leaves the image as it is.
    """
    from matplotlib import colormaps
    from PIL import Image

    pixels, values = _checked(pixels), np.asarray(values, np.float32)
    low, high = values.min(), values.max()
    levels = (values - low) / (high - low if high > low else 1)
    size = (pixels.shape[1], pixels.shape[0])
    stretched = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR))
    colours = 255 * colormaps["inferno"](stretched)[..., :3]
    return np.round((1 - strength) * pixels + strength * colours).astype(np.uint8)


def reduced(pixels: Any, longest: int) -> np.ndarray:
    """The image with its longer side at most `longest`, in its proportions."""
    from PIL import Image

    pixels = _checked(pixels)
    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def write_image(path: str | Path, pixels: Any) -> None:
    """Writes a PNG file in one moment; its directory is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".incomplete-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_encoded(_checked(pixels), "png"))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return out.getvalue()


def _checked(pixels: Any) -> np.ndarray:
    """u8 [H, W, 3], grey images in three equal channels."""
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, -1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"an image is u8 [height, width, 3], got {pixels.dtype}{list(pixels.shape)}"
        )
    return pixels
