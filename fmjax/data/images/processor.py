"""Pictures as a checkpoint wants them: preprocessor_config.json, read, applied and written.

Pixel for pixel what transformers' image processors with the PIL backend give (tested), laid out
NHWC: decode, resize, crop, rescale, normalise.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmjax.core.errors import ConfigError, DataError
from fmjax.data.images import processor_files as files
from fmjax.data.images.decode import MAX_PIXELS, ImageError, Picture, decode_image


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Makes `pixel_values` of pictures.

    Attributes:
      kind: the class in transformers, without "ImageProcessor": "ViT", "CLIP", "Siglip", "Bit",
        "DeiT" or "ConvNext".
      size: to resize to: (height, width), whatever the proportions, or the shorter side alone;
        None does not resize.
      resample: Pillow's number of the filter: 2 bilinear, 3 bicubic, …
      crop_size: (height, width) cut out of the middle, zeros around what is smaller; None: all.
      crop_pct: "ConvNext" only: below 384 pixels the shorter side is resized to size / crop_pct
        and a square of `size` cut out; from there on pictures are squeezed into the square.
      rescale_factor: of the 8-bit values; None leaves them.
      image_mean, image_std: of red, green and blue, after rescaling; None does not normalise.
      extra: other fields of the file, kept for writing.
    """

    kind: str = "ViT"
    size: files.Size | None = (224, 224)
    resample: int = files.BILINEAR
    crop_size: tuple[int, int] | None = None
    crop_pct: float | None = None
    rescale_factor: float | None = 1 / 255
    image_mean: tuple[float, ...] | None = files.HALVES[0]
    image_std: tuple[float, ...] | None = files.HALVES[1]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(
        self, pictures: Picture | Sequence[Picture], *, max_pixels: int = MAX_PIXELS
    ) -> dict[str, np.ndarray]:
        """`{"pixel_values": f32[B, H, W, 3]}` of one picture or several; see `decode_image`.

        `max_pixels` holds for a picture as it is, and once more when its shorter side is resized.

        Raises:
          ImageError: a picture that cannot be decoded, or has too many pixels.
          DataError: no pictures, or sizes that differ after processing.
        """
        if isinstance(pictures, (bytes, bytearray, memoryview, str, Path, Image.Image)):
            pictures = [pictures]
        elif isinstance(pictures, np.ndarray) and pictures.ndim < 4:
            pictures = [pictures]
        rows = [
            self.pixels(decode_image(picture, max_pixels=max_pixels), max_pixels=max_pixels)
            for picture in pictures
        ]
        if not rows:
            raise DataError("no pictures to process; give at least one")
        if len({row.shape for row in rows}) > 1:
            a, b = sorted({row.shape[:2] for row in rows})[:2]
            raise DataError(
                f"pictures of {a} and {b} pixels after processing; process them one by one, or "
                "set a crop_size"
            )
        return {"pixel_values": np.stack(rows)}

    def pixels(self, picture_HWC: np.ndarray, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """f32[H, W, 3] of one decoded picture u8[h, w, 3].

        Raises:
          ImageError: a picture so narrow that it has more than `max_pixels` when its shorter side
            is resized.
        """
        picture = self._resized(picture_HWC, max_pixels)
        if self.crop_size is not None:
            picture = _center_crop(picture, *self.crop_size)
        table = self._table
        return np.stack([table[c][picture[:, :, c]] for c in range(3)], -1)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """f32[3, 256]: the pixel value of each 8-bit value of each channel."""
        values = np.tile(np.arange(256, dtype=np.float64), (3, 1))
        if self.rescale_factor is not None:
            values = values * self.rescale_factor
        values = values.astype(np.float32)
        if self.image_mean is None or self.image_std is None:
            return values
        mean, std = (np.array(x, np.float32)[:, None] for x in (self.image_mean, self.image_std))
        return (values - mean) / std

    def _resized(self, picture: np.ndarray, max_pixels: int) -> np.ndarray:
        if self.size is None:
            return picture
        if self.kind == "ConvNext":
            side = self.size
            if side >= 384:
                return _resize(picture, (side, side), self.resample)
            size = _by_shorter(picture, int(side / self.crop_pct), max_pixels)
            return _center_crop(_resize(picture, size, self.resample), side, side)
        size = self.size
        if not isinstance(size, tuple):
            size = _by_shorter(picture, size, max_pixels)
        return _resize(picture, size, self.resample)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every result; None if it depends on the picture."""
        if self.crop_size is not None:
            return self.crop_size
        if self.kind == "ConvNext" and self.size is not None:
            return (self.size, self.size)
        return self.size if isinstance(self.size, tuple) else None

    @classmethod
    def for_model(cls, model_type: str, image_size: int | None = None) -> "ImageProcessor":
        """What the published checkpoints of a family use, for pictures of `image_size` pixels.

        Raises:
          ConfigError: a family without pictures.
        """
        if model_type not in files.FAMILIES:
            raise ConfigError(
                f'no image processor for model_type "{model_type}"; there are those of '
                f"{', '.join(files.FAMILIES)}"
            )
        made = cls(**files.FAMILIES[model_type])
        if image_size is None:
            return made
        if made.crop_size is not None:
            # The shorter side in proportion (DINOv2: 256 for 224).
            side = round(made.size * image_size / made.crop_size[0])
            return dataclasses.replace(made, size=side, crop_size=(image_size, image_size))
        size = image_size if isinstance(made.size, int) else (image_size, image_size)
        return dataclasses.replace(made, size=size)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ImageProcessor":
        """Reads a model directory's preprocessor_config.json (or processor_config.json).

        Raises:
          ConfigError: neither is there, or one that asks for what fmjax does not do.
        """
        found = files.read(Path(directory))
        if found is None:
            raise ConfigError(
                f"{directory} has no {files.FILE}; copy it from the checkpoint, or make a "
                "processor with ImageProcessor.for_model"
            )
        content, file = found
        return cls.from_hf(content, str(file))

    @classmethod
    def from_hf(cls, content: Mapping[str, Any], where: str = files.FILE) -> "ImageProcessor":
        """From the fields of preprocessor_config.json; `to_hf` is the inverse.

        Raises:
          ConfigError: an unknown processor, or a field that changes the pictures and is not
            understood.
        """
        return cls(**files.from_hf(content, where))

    def to_hf(self) -> dict[str, Any]:
        """The fields of preprocessor_config.json."""
        names = [field.name for field in dataclasses.fields(self)]
        return files.to_hf({name: getattr(self, name) for name in names})

    def save(self, directory: str | Path) -> None:
        """Writes preprocessor_config.json, which transformers' AutoImageProcessor reads.

        Raises:
          ConfigError: the directory cannot be written.
        """
        files.write(Path(directory), self.to_hf())


def _by_shorter(picture: np.ndarray, side: int, max_pixels: int) -> tuple[int, int]:
    height, width = picture.shape[:2]
    longer = int(side * max(height, width) / min(height, width))
    if side * longer > max_pixels:  # a line of 20,000 pixels would take gigabytes
        raise ImageError(
            "too many pixels",
            f"{width} × {height} with the shorter side resized to {side}, the limit is "
            f"{max_pixels}",
        )
    return (longer, side) if width <= height else (side, longer)


def _resize(picture: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling(resample)))


def _center_crop(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    # The middle of a picture that is too small lies half a pixel further down and to the right.
    pads = [math.ceil(max(want - have, 0) / 2) for want, have in zip(
        (height, width), picture.shape, strict=False)]  # fmt: skip
    larger = [max(want, have) for want, have in zip((height, width), picture.shape, strict=False)]
    canvas = np.zeros((*larger, 3), picture.dtype)
    canvas[pads[0] : pads[0] + picture.shape[0], pads[1] : pads[1] + picture.shape[1]] = picture
    top, left = (
        (have - want) // 2 + pad
        for have, want, pad in zip(picture.shape, (height, width), pads, strict=False)
    )
    return canvas[top : top + height, left : left + width]
