"""Prepared TensorFlow Datasets image sets, read by random access without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.images.sources import ImageSource

_CAPTIONS = ("captions", "caption", "text")


class TfdsImages(ImageSource):
    """Pictures of a TFDS data set, still encoded, with their labels and captions.

    Args:
      name: a TFDS name ("cifar10", "name/config:version"), or the directory of a prepared builder
        (with `dataset_info.json`). The files must be ArrayRecord.
      split: "train", "test", "train[:10%]", "all", …
      data_dir: where named data sets live; default TFDS's own.
      image_field, label_field, caption_field: names of features; by default "image" or the only
        image feature, "label" or the only ClassLabel, and "captions", "caption" or "text".

    Raises:
      DataError: not found or not prepared, an unknown split or feature, or not ArrayRecord.
    """

    def __init__(
        self,
        name: str | Path,
        split: str = "train",
        *,
        data_dir: str | Path | None = None,
        image_field: str | None = None,
        label_field: str | None = None,
        caption_field: str | None = None,
    ):
        import tensorflow_datasets as tfds

        self._name, self._split = str(name), split
        try:
            builder = _builder(tfds, name, data_dir)
            features = builder.info.features
            self._image = _find(features, tfds.features.Image, image_field, ("image",), "image")
            if self._image is None:
                raise DataError("no feature is an image")
            self._data = builder.as_data_source(
                split=split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
        except Exception as e:  # TFDS raises whatever its readers, registry and network raise
            reason = " ".join(str(e).split())[:200]
            raise DataError(
                f'TFDS data set "{name}", split "{split}": {reason or type(e).__name__}; check the '
                "name and the split, and prepare it as ArrayRecord "
                '(download_and_prepare with file_format="array_record")'
            ) from e
        self._label = _find(features, tfds.features.ClassLabel, label_field, ("label",), "label")
        self._caption = _find(features, tfds.features.Text, caption_field, _CAPTIONS, "caption")
        if self._label is not None and isinstance(features[self._label], tfds.features.ClassLabel):
            self.class_names = tuple(features[self._label].names)
        if len(self._data) == 0:
            raise DataError(f'TFDS data set "{name}", split "{split}" is empty')

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._data[int(index)]
        example: dict[str, Any] = {"image": row[self._image]}
        if self._label is not None:
            example["label"] = int(row[self._label])
        if self._caption is not None:
            value = row[self._caption]
            if isinstance(value, (bytes, str)):
                example["caption"] = _text(value)
            else:
                captions = tuple(_text(v) for v in value)
                example["captions"] = captions
                example["caption"] = captions[0] if captions else ""
        return example

    def name(self, index: int) -> str:
        return f"tfds:{self._name}, {self._split}, example {index}"

    def group(self, index: int) -> str:
        return f"{self._split} {index}"


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _builder(tfds: Any, name: str | Path, data_dir: str | Path | None) -> Any:
    if (Path(name) / "dataset_info.json").is_file():
        return tfds.builder_from_directory(str(name))
    if isinstance(name, Path) or Path(name).is_dir():
        raise DataError("no dataset_info.json there; give the version directory")
    where = None if data_dir is None else str(data_dir)
    return tfds.builder(str(name), data_dir=where, file_format="array_record")


def _find(
    features: Mapping[str, Any], kind: type, given: str | None, usual: tuple[str, ...], what: str
) -> str | None:
    """The name of the feature of a kind (of captions also of a sequence of it), or None."""

    def is_list(feature: Any) -> bool:
        return hasattr(feature, "feature") and what != "caption"

    if given is not None:
        if given not in features:
            raise DataError(f'no {what} feature "{given}"; it has {", ".join(sorted(features))}')
        if is_list(features[given]):
            raise DataError(f'the feature "{given}" has several of each example; give another')
        return given
    fitting = [
        name
        for name, f in features.items()
        if isinstance(getattr(f, "feature", f), kind) and not is_list(f)
    ]
    for name in usual:
        if name in fitting:
            return name
    # Texts of another name may be anything.
    return fitting[0] if len(fitting) == 1 and what != "caption" else None


def has_split(name: str | Path, split: str, data_dir: str | Path | None = None) -> bool:
    """Whether a TFDS data set has this split; False also where there is no such data set."""
    import tensorflow_datasets as tfds

    try:
        return split in _builder(tfds, name, data_dir).info.splits
    except Exception:  # whoever reads it next says what is wrong
        return False
