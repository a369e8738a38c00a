"""Pictures as a checkpoint wants them: preprocessor_config.json, read, applied and written.

Pixel for pixel what transformers' image processors with the PIL backend give (tested), laid out
NHWC: decode, resize, crop, rescale, normalise.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmjax.core.errors import ConfigError, DataError
from fmjax.data.images.decode import MAX_PIXELS, Picture, decode_image

FILE = "preprocessor_config.json"
_COMBINED = "processor_config.json"  # where transformers 5 puts it beside a tokenizer's settings

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BILINEAR, BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)

Size = tuple[int, int] | int


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
    size: Size | None = (224, 224)
    resample: int = BILINEAR
    crop_size: tuple[int, int] | None = None
    crop_pct: float | None = None
    rescale_factor: float | None = 1 / 255
    image_mean: tuple[float, ...] | None = HALVES[0]
    image_std: tuple[float, ...] | None = HALVES[1]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(
        self, pictures: Picture | Sequence[Picture], *, max_pixels: int = MAX_PIXELS
    ) -> dict[str, np.ndarray]:
        """`{"pixel_values": f32[B, H, W, 3]}` of one picture or several; see `decode_image`.

        Raises:
          ImageError: a picture that cannot be decoded.
          DataError: no pictures, or sizes that differ after processing.
        """
        if isinstance(pictures, (bytes, bytearray, memoryview, str, Path, Image.Image)):
            pictures = [pictures]
        elif isinstance(pictures, np.ndarray) and pictures.ndim < 4:
            pictures = [pictures]
        rows = [self.pixels(decode_image(picture, max_pixels=max_pixels)) for picture in pictures]
        if not rows:
            raise DataError("no pictures to process; give at least one")
        if len({row.shape for row in rows}) > 1:
            a, b = sorted({row.shape[:2] for row in rows})[:2]
            raise DataError(
                f"pictures of {a} and {b} pixels after processing; process them one by one, or "
                "set a crop_size"
            )
        return {"pixel_values": np.stack(rows)}

    def pixels(self, picture_HWC: np.ndarray) -> np.ndarray:
        """f32[H, W, 3] of one decoded picture u8[h, w, 3]."""
        picture = self._resized(picture_HWC)
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

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        if self.size is None:
            return picture
        if self.kind == "ConvNext":
            side = self.size
            if side >= 384:
                return _resize(picture, (side, side), self.resample)
            picture = _resize(
                picture, _by_shorter(picture, int(side / self.crop_pct)), self.resample
            )
            return _center_crop(picture, side, side)
        size = self.size if isinstance(self.size, tuple) else _by_shorter(picture, self.size)
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
        if model_type not in _FAMILIES:
            raise ConfigError(
                f'no image processor for model_type "{model_type}"; there are those of '
                f"{', '.join(_FAMILIES)}"
            )
        made = _FAMILIES[model_type]
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
        directory = Path(directory)
        combined, file = directory / _COMBINED, directory / FILE
        if combined.is_file() and (content := _read(combined).get("image_processor")):
            return cls.from_hf(content, str(combined))
        if file.is_file():
            return cls.from_hf(_read(file), str(file))
        raise ConfigError(
            f"{directory} has no {FILE}; copy it from the checkpoint, or make a processor with "
            "ImageProcessor.for_model"
        )

    @classmethod
    def from_hf(cls, content: Mapping[str, Any], where: str = FILE) -> "ImageProcessor":
        """From the fields of preprocessor_config.json; `to_hf` is the inverse.

        Raises:
          ConfigError: an unknown processor, or a field that changes the pictures and is not
            understood.
        """
        rest = dict(content)
        name = rest.pop("image_processor_type", rest.pop("feature_extractor_type", None))
        rest.pop("feature_extractor_type", None)
        kind = _kind(name)
        if kind not in _DEFAULTS:
            raise ConfigError(
                f'{where}: image_processor_type "{name}" is not understood; there are '
                f"{', '.join(f'{k}ImageProcessor' for k in _DEFAULTS)}"
            )
        for field in ("do_pad", "do_reduce_labels", "do_flip_channel_order", "do_thumbnail"):
            if rest.get(field):
                raise ConfigError(f"{where}: {field} is not supported; set it to false")
        default = _DEFAULTS[kind]
        get = functools.partial(_pop, rest)
        try:
            size = _size(get("size", default.size), square=kind in ("ViT", "DeiT"))
            crop = _size(get("crop_size", default.crop_size or size), square=True)
            fields = {
                "size": size if get("do_resize", True) else None,
                "resample": int(get("resample", default.resample)),
                "crop_size": crop if get("do_center_crop", default.crop_size is not None) else None,
                "crop_pct": get("crop_pct", default.crop_pct),
                "rescale_factor": float(get("rescale_factor", 1 / 255)),
                "image_mean": tuple(map(float, get("image_mean", default.image_mean))),
                "image_std": tuple(map(float, get("image_std", default.image_std))),
            }
            if fields["crop_size"] is not None and isinstance(crop, int):
                raise ValueError(f"crop_size {crop}")
            if kind == "ConvNext" and not isinstance(size, int):
                raise ValueError(f"size {size}, not a shortest_edge")
            if len(fields["image_mean"]) != 3 or len(fields["image_std"]) != 3:
                raise ValueError("image_mean and image_std must have three numbers")
            Image.Resampling(fields["resample"])
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(f"{where}: {e}; repair the file") from e
        if not get("do_rescale", True):
            fields["rescale_factor"] = None
        if not get("do_normalize", True):
            fields["image_mean"] = fields["image_std"] = None
        return cls(kind=kind, extra=rest, **fields)

    def to_hf(self) -> dict[str, Any]:
        """The fields of preprocessor_config.json."""
        content = dict(self.extra)
        content["image_processor_type"] = f"{self.kind}ImageProcessor"
        content |= {
            "do_resize": self.size is not None,
            "resample": self.resample,
            "do_center_crop": self.crop_size is not None,
            "do_rescale": self.rescale_factor is not None,
            "do_normalize": self.image_mean is not None,
        }
        if self.size is not None:
            content["size"] = {"shortest_edge": self.size} if isinstance(self.size, int) else (
                dict(zip(("height", "width"), self.size, strict=True))
            )  # fmt: skip
        if self.crop_size is not None:
            content["crop_size"] = dict(zip(("height", "width"), self.crop_size, strict=True))
        if self.crop_pct is not None:
            content["crop_pct"] = self.crop_pct
        if self.rescale_factor is not None:
            content["rescale_factor"] = self.rescale_factor
        if self.image_mean is not None:
            content |= {"image_mean": [*self.image_mean], "image_std": [*self.image_std]}
        return content

    def save(self, directory: str | Path) -> None:
        """Writes preprocessor_config.json, which transformers' AutoImageProcessor reads.

        Raises:
          ConfigError: the directory cannot be written.
        """
        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write(directory / FILE, self.to_hf())
            combined = directory / _COMBINED
            # There transformers would look first.
            if combined.is_file() and "image_processor" in (content := _read(combined)):
                _write(combined, content | {"image_processor": self.to_hf()})
        except OSError as e:
            raise ConfigError(
                f"{directory} cannot be written ({e.strerror}); choose another directory"
            ) from e


def _processor(kind: str, side: int, resample: int, stats: tuple, **fields: Any) -> ImageProcessor:
    size: Size = side if kind in ("CLIP", "Bit", "ConvNext") else (side, side)
    return ImageProcessor(kind, size, resample, image_mean=stats[0], image_std=stats[1], **fields)


_SQUARE = (224, 224)
# What transformers' classes take where the file says nothing.
_DEFAULTS = {
    "ViT": _processor("ViT", 224, BILINEAR, HALVES),
    "CLIP": _processor("CLIP", 224, BICUBIC, CLIP, crop_size=_SQUARE),
    "Siglip": _processor("Siglip", 224, BICUBIC, HALVES),
    "Bit": _processor("Bit", 224, BICUBIC, CLIP, crop_size=_SQUARE),
    "DeiT": _processor("DeiT", 256, BICUBIC, HALVES, crop_size=_SQUARE),
    "ConvNext": _processor("ConvNext", 384, BICUBIC, HALVES, crop_pct=224 / 256),
}
# What published checkpoints have.
_DINO = _processor("Bit", 256, BICUBIC, IMAGENET, crop_size=_SQUARE)
_FAMILIES = {
    "vit": _DEFAULTS["ViT"],
    "vit_mae": _processor("ViT", 224, BICUBIC, IMAGENET),
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "resnet": _processor("ConvNext", 224, BICUBIC, IMAGENET, crop_pct=0.875),
    "clip": _DEFAULTS["CLIP"],
    "clip_vision_model": _DEFAULTS["CLIP"],
    "siglip": _DEFAULTS["Siglip"],
    "siglip_vision_model": _DEFAULTS["Siglip"],
}


def _kind(name: Any) -> str:
    name = str(name).removesuffix("Pil").removesuffix("Fast")
    return name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")


def _pop(rest: dict[str, Any], field: str, default: Any) -> Any:
    value = rest.pop(field, None)
    return default if value is None else value


def _size(size: Any, square: bool) -> Size:
    """Old files have a number, for a square or a shorter side, by the processor's class."""
    if isinstance(size, (list, tuple)):
        size = dict(zip(("height", "width"), size, strict=True))
    if isinstance(size, Mapping):
        known = {k: int(v) for k, v in size.items() if v is not None}
        if known.keys() == {"height", "width"}:
            return known["height"], known["width"]
        if known.keys() == {"shortest_edge"}:
            return known["shortest_edge"]
        raise ValueError(f"a size with {', '.join(known) or 'nothing'}")
    return (int(size), int(size)) if square else int(size)


def _by_shorter(picture: np.ndarray, side: int) -> tuple[int, int]:
    height, width = picture.shape[:2]
    longer = int(side * max(height, width) / min(height, width))
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


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{file}: not JSON ({e}); copy the file again") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: not a JSON object; copy the file again")
    return content


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
