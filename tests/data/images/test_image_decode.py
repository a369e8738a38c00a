"""Every kind of picture becomes RGB, or an error that says why not."""

import functools
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from fmjax.core.errors import DataError
from fmjax.data.images import ImageError, decode_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    """A smooth gradient, which JPEG and resizing leave nearly as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, 0 * x + 90], -1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP"])
def test_lossless_formats_are_exact(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encoded(picture(), kind, **options)), picture())


def test_paths_arrays_and_pillow_images(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    for given in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        picture(),
        Image.fromarray(picture()),
    ):
        np.testing.assert_array_equal(decode_image(given), picture())


def test_jpeg_and_its_reduction_come_near() -> None:
    large = picture(400, 600)
    data = encoded(large, "JPEG", quality=95)
    assert np.abs(decode_image(data).astype(int) - large).max() < 8
    small = decode_image(data, max_size=60)
    assert small.shape == (40, 60, 3)
    exact = np.asarray(Image.fromarray(large).resize((60, 40), Image.Resampling.BICUBIC))
    assert np.abs(small.astype(int) - exact).max() < 8
    own = Image.open(io.BytesIO(data))
    assert decode_image(own, max_size=60).shape == (40, 60, 3)
    assert own.size == (600, 400) and decode_image(own).shape == (400, 600, 3)


def test_max_size_keeps_proportions_and_never_enlarges() -> None:
    assert decode_image(picture(20, 30), max_size=15).shape == (10, 15, 3)
    assert decode_image(picture(20, 30), max_size=64).shape == (20, 30, 3)
    assert decode_image(picture(2, 300), max_size=30).shape == (1, 30, 3)


def test_grey_bilevel_and_palette() -> None:
    grey = picture()[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, -1)
    np.testing.assert_array_equal(decode_image(encoded(grey)), expected)
    np.testing.assert_array_equal(decode_image(grey[:, :, None]), expected)
    bits = grey > 100
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(bits)))[:, :, 1], bits * 255)
    np.testing.assert_array_equal(decode_image(bits)[:, :, 1], bits * 255)
    palette = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(
        decode_image(encoded(palette, "GIF")), np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_scale(kind: str) -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    assert decode_image(encoded(grey, kind))[0, :, 0].tolist() == expected
    assert decode_image(grey)[0, :, 2].tolist() == expected


def test_transparency_shows_the_background() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (*RED, 255)
    decoded = decode_image(encoded(rgba))
    assert decoded[0, 0].tolist() == [*RED] and decoded[1, 0].tolist() == [255, 255, 255]
    assert decode_image(rgba, background=BLUE)[1, 1].tolist() == [*BLUE]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    decoded = decode_image(encoded(palette, transparency=1))
    assert decoded[0].tolist() == [[*RED], [255, 255, 255]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert decode_image(encoded(grey))[0, 0].tolist() == [255, 255, 255]
    single = encoded(Image.new("RGB", (1, 1), GREEN), transparency=GREEN)
    assert decode_image(single)[0, 0].tolist() == [255, 255, 255]


def test_cmyk() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(decode_image(data)[4, 4].astype(int) - RED).max() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The stored pixels are turned; `exif_transpose` is Pillow's own reading."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(16, 24), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data), expected)
    assert decode_image(data, max_size=12).shape[:2] == ((8, 12) if orientation < 5 else (12, 8))


def test_broken_exif_is_passed_over() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*garbage" + bytes(range(40)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on the corrupt EXIF
        assert decode_image(data).shape == (20, 30, 3)


def bomb(width: int, height: int) -> bytes:
    """A few bytes that claim to be this many pixels."""
    data = bytearray(encoded(picture()))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@functools.cache
def broken() -> dict[str, tuple[object, str]]:
    png, jpeg = encoded(picture()), encoded(picture(64, 64), "JPEG")
    at = png.index(b"IDAT") + 4
    damaged = png[:at] + bytes(8) + png[at + 8 :]
    return {
        "empty": (b"", "empty file"),
        "text": (b"not a picture at all", "not an image"),
        "png": (png[: len(png) // 2], "truncated"),
        "jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "header": (png[:20], "truncated"),
        "damaged": (damaged, "corrupt"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "floats": (np.zeros((4, 4, 3), np.float32), "not an image"),
        "shape": (np.zeros((4, 4, 2), np.uint8), "not an image"),
        "no pixels": (np.zeros((0, 4, 3), np.uint8), "not an image"),
        "float file": (encoded(Image.new("F", (4, 4)), "TIFF"), "not an image"),
        "missing": ("/nowhere/a.png", "no such file"),
        "directory": ("/", "unreadable"),
        "bomb": (bomb(9000, 20000), "too many pixels"),
        "larger bomb": (bomb(20000, 20000), "too many pixels"),
        "other": (2**40, "not an image"),
    }


@pytest.mark.parametrize("which", sorted(broken()))
def test_what_cannot_be_used_says_why(which: str) -> None:
    given, reason = broken()[which]
    with pytest.raises(ImageError, match=r"shard 3: .*; repair or remove it$") as e:
        decode_image(given, name="shard 3")
    assert e.value.reason == reason, e.value
    assert "\n" not in str(e.value)


def test_limits() -> None:
    with pytest.raises(ImageError, match="an image: too many pixels .30 × 20, the limit is 599"):
        decode_image(encoded(picture()), max_pixels=599)
    decode_image(encoded(picture()), max_pixels=600)
    with pytest.raises(DataError, match="choose at least 1"):
        decode_image(picture(), max_size=0)
    with pytest.raises(DataError, match="max_pixels=0"):
        decode_image(picture(), max_pixels=0)
