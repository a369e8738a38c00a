"""One encoded picture, or an array, as u8[H, W, 3]; or an `ImageError` that says what is wrong.

What pictures may be: any mode of Pillow's (palette, grey, 16-bit, CMYK, alpha …) becomes RGB, alpha
over a background, and EXIF's rotation is applied. What they may not: truncated, of a format that is
not in `FORMATS`, or of more pixels than allowed (a small file can unpack to gigabytes).
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fmjax.core.errors import DataError

# Raster formats alone: for some of the others Pillow starts other programs (EPS: Ghostscript).
FORMATS = (
    "AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP",
)  # fmt: skip
SUFFIXES = frozenset(
    f".{s}" for s in "avif bmp gif ico jpe jpeg jpg jp2 mpo pgm png ppm tga tif tiff webp".split()
)
MAX_PIXELS = 89_478_485  # Pillow's own limit, from which it warns: 256 MiB of RGB
_PILLOW_REFUSES = 2 * MAX_PIXELS
WHITE = (255, 255, 255)

Picture = bytes | bytearray | memoryview | str | Path | np.ndarray | Image.Image


class ImageError(DataError):
    """A picture that cannot be used. `reason` is one of a few short phrases, to count by."""

    def __init__(self, reason: str, detail: str = "", name: str = ""):
        self.reason, self.detail, self.name = reason, detail, name
        super().__init__(
            f"{name or 'an image'}: {reason}{f' ({detail})' if detail else ''}; repair or remove it"
        )


def decode_image(
    picture: Picture,
    *,
    max_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = WHITE,
    name: str = "",
) -> np.ndarray:
    """The picture as RGB.

    Args:
      picture: an encoded file's bytes, its path, a Pillow image, or an array u8, u16 (full scale
        65,535) or bool, [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
      max_size: largest height and width in pixels; a larger picture is scaled down (bicubic, after
        the JPEG decoder's own reduction), keeping its proportions. Default: as it is.
      max_pixels: most height · width before scaling, at most 178,956,970.
      background: RGB under transparent pixels.
      name: what errors call the picture; default is its path.

    Returns:
      u8[H, W, 3].

    Raises:
      ImageError: it cannot be decoded, or has too many pixels.
      DataError: max_size or max_pixels out of range.
    """
    check_limits(max_size, max_pixels)
    if isinstance(picture, (str, Path)):
        name = name or str(picture)
    try:
        opened = _open(picture, max_pixels)
        # The caller's own picture must stay as large as it is.
        return _rgb(opened, max_size, background, reduce=opened is not picture)
    except ImageError as e:
        raise ImageError(e.reason, e.detail, name) from e.__cause__
    # Pillow's readers raise whatever broken bytes lead them to: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, KeyError, MemoryError … None of these may end a run.
    except Exception as e:
        raise ImageError(_reason(e), " ".join(str(e).split())[:120], name) from e


def check_limits(max_size: int | None, max_pixels: int) -> None:
    """Raises DataError unless both can be used."""
    if max_size is not None and max_size < 1:
        raise DataError(f"an image size of {max_size} pixels; choose at least 1")
    if not 1 <= max_pixels <= _PILLOW_REFUSES:
        raise DataError(
            f"max_pixels={max_pixels} is not in 1 … {_PILLOW_REFUSES} (what Pillow opens)"
        )


def _reason(e: Exception) -> str:
    if isinstance(e, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "too many pixels"
    if isinstance(e, UnidentifiedImageError):
        return "not an image"
    if isinstance(e, FileNotFoundError):
        return "no such file"
    if isinstance(e, OSError) and e.errno is not None:
        return "unreadable"
    if "truncated" in str(e).lower():
        return "truncated"
    return "corrupt"


def _open(picture: Picture, max_pixels: int) -> Image.Image:
    if isinstance(picture, Image.Image):
        image = picture
    elif isinstance(picture, np.ndarray):
        image = _of_array(picture)
    elif not isinstance(picture, (str, Path, bytes, bytearray, memoryview)):
        raise ImageError("not an image", f"a {type(picture).__name__}")
    else:
        data = Path(picture).read_bytes() if isinstance(picture, (str, Path)) else bytes(picture)
        if not data:
            raise ImageError("empty file")
        Image.init()
        try:
            image = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
        except UnidentifiedImageError:  # its message is the address of a buffer
            raise ImageError("not an image") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too many pixels", f"{width} × {height}, the limit is {max_pixels}")
    return image


def _of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)
    if not fits or not array.size or array.dtype not in (np.uint8, np.uint16, np.bool_):
        raise ImageError("not an image", f"an array {array.dtype}{list(array.shape)}")
    if array.dtype == np.uint16:
        array = _to_8_bits(array)
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    return Image.fromarray(np.ascontiguousarray(array))


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _rgb(image: Image.Image, max_size: int | None, background: tuple, reduce: bool) -> np.ndarray:
    width, height = image.size
    scale = 1.0 if max_size is None else min(1.0, max_size / max(width, height))
    size = tuple(max(1, round(side * scale)) for side in (width, height))
    if scale < 1 and reduce:
        # Twice the wanted size, lest the reduction be seen.
        image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    turn = _TURNS.get(_orientation(image))  # of a loaded image, as PNG's EXIF may stand at the end
    image = _to_rgb(image, background)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.array(image if turn is None else image.transpose(turn))


# EXIF's orientations other than 1, upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF is common, and the picture beside it whole
        return 1


def _to_rgb(image: Image.Image, background: tuple) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError("not an image", "pixels are floating-point numbers")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("not an image", "grey levels outside 16 bits")
        image = Image.fromarray(_to_8_bits(values))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        below = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
