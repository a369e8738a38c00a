"""preprocessor_config.json as fields of an `ImageProcessor`, and back."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fmjax.core.errors import ConfigError

FILE = "preprocessor_config.json"
COMBINED = "processor_config.json"  # where transformers 5 puts it beside a tokenizer's settings

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BILINEAR, BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)
_SQUARE = (224, 224)
_TYPES = ("image_processor_type", "feature_extractor_type")  # The second is the older name.

Size = tuple[int, int] | int
Fields = dict[str, Any]


def _fields(
    kind: str,
    size: Size,
    resample: int,
    stats: tuple,
    crop_size: tuple[int, int] | None = None,
    crop_pct: float | None = None,
) -> Fields:
    return {
        "kind": kind, "size": size, "resample": resample, "crop_size": crop_size,
        "crop_pct": crop_pct, "image_mean": stats[0], "image_std": stats[1],
    }  # fmt: skip


# What transformers' classes take where the file says nothing.
_DEFAULTS = {
    "ViT": _fields("ViT", _SQUARE, BILINEAR, HALVES),
    "CLIP": _fields("CLIP", 224, BICUBIC, CLIP, crop_size=_SQUARE),
    "Siglip": _fields("Siglip", _SQUARE, BICUBIC, HALVES),
    "Bit": _fields("Bit", 224, BICUBIC, CLIP, crop_size=_SQUARE),
    "DeiT": _fields("DeiT", (256, 256), BICUBIC, HALVES, crop_size=_SQUARE),
    "ConvNext": _fields("ConvNext", 384, BICUBIC, HALVES, crop_pct=224 / 256),
}
_DINO = _fields("Bit", 256, BICUBIC, IMAGENET, crop_size=_SQUARE)
# What the published checkpoints of a family have.
FAMILIES = {
    "vit": _DEFAULTS["ViT"],
    "vit_mae": _fields("ViT", _SQUARE, BICUBIC, IMAGENET),
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "resnet": _fields("ConvNext", 224, BICUBIC, IMAGENET, crop_pct=0.875),
    "clip": _DEFAULTS["CLIP"],
    "clip_vision_model": _DEFAULTS["CLIP"],
    "siglip": _DEFAULTS["Siglip"],
    "siglip_vision_model": _DEFAULTS["Siglip"],
}


def from_hf(content: Mapping[str, Any], where: str) -> Fields:
    """The fields of an `ImageProcessor`; errors as its `from_hf`."""
    rest = dict(content)
    new, old = (rest.pop(key, None) for key in _TYPES)
    name = new or old
    if name is None:
        raise ConfigError(
            f'{where}: no {_TYPES[0]}; add one, such as "{_TYPES[0]}": "ViTImageProcessor"'
        )
    kind = str(name).removesuffix("Pil").removesuffix("Fast")
    kind = kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
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
        size = _size(get("size", default["size"]), square=kind in ("ViT", "DeiT"))
        crop = _size(get("crop_size", default["crop_size"] or size), square=True)
        cropped = get("do_center_crop", default["crop_size"] is not None)
        fields = {
            "kind": kind,
            "size": size if get("do_resize", True) else None,
            "resample": int(get("resample", default["resample"])),
            "crop_size": crop if cropped else None,
            "crop_pct": get("crop_pct", default["crop_pct"]),
            "rescale_factor": float(get("rescale_factor", 1 / 255)),
            "image_mean": tuple(map(float, get("image_mean", default["image_mean"]))),
            "image_std": tuple(map(float, get("image_std", default["image_std"]))),
        }
        if cropped and isinstance(crop, int):
            raise ValueError(f"crop_size {crop}, not a height and a width")
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
    return fields | {"extra": rest}


def to_hf(fields: Mapping[str, Any]) -> Fields:
    """The inverse of `from_hf`."""
    size, crop = fields["size"], fields["crop_size"]
    content = dict(fields["extra"]) | {
        "image_processor_type": f"{fields['kind']}ImageProcessor",
        "do_resize": size is not None,
        "resample": fields["resample"],
        "do_center_crop": crop is not None,
        "do_rescale": fields["rescale_factor"] is not None,
        "do_normalize": fields["image_mean"] is not None,
    }
    if size is not None:
        content["size"] = {"shortest_edge": size} if isinstance(size, int) else _sides(size)
    if crop is not None:
        content["crop_size"] = _sides(crop)
    for name in ("crop_pct", "rescale_factor"):
        if fields[name] is not None:
            content[name] = fields[name]
    for name in ("image_mean", "image_std"):
        if fields[name] is not None:
            content[name] = [*fields[name]]
    return content


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _pop(rest: Fields, field: str, default: Any) -> Any:
    value = rest.pop(field, None)
    return default if value is None else value


def _size(size: Any, square: bool) -> Size:
    """Old files have a number, for a square or a shorter side, by the processor's class."""
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping):
        known = {k: int(v) for k, v in size.items() if v is not None}
        if known.keys() == {"height", "width"}:
            return known["height"], known["width"]
        if known.keys() == {"shortest_edge"}:
            return known["shortest_edge"]
        raise ValueError(f"a size with {', '.join(known) or 'nothing'}")
    return (int(size), int(size)) if square else int(size)


def read(directory: Path) -> tuple[dict[str, Any], Path] | None:
    """The settings in a directory, and the file that they are in; None if there are none."""
    combined, file = directory / COMBINED, directory / FILE
    if combined.is_file() and (content := _read(combined).get("image_processor")):
        return _typed(content, directory), combined
    return (_typed(_read(file), directory), file) if file.is_file() else None


def write(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes both files where both are, as transformers would look into the combined one first."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / FILE, content)
        combined = directory / COMBINED
        if combined.is_file() and "image_processor" in (whole := _read(combined)):
            _write(combined, whole | {"image_processor": content})
    except OSError as e:
        raise ConfigError(
            f"{directory} cannot be written ({e.strerror}); choose another directory"
        ) from e


def _typed(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Where an old file names no class, that of the model beside it, as in transformers."""
    config = directory / "config.json"
    if content.keys() & set(_TYPES) or not config.is_file():
        return content
    family = FAMILIES.get(_read(config).get("model_type"))
    return content if family is None else {_TYPES[0]: f"{family['kind']}ImageProcessor", **content}


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
