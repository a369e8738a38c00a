"""Configs that hold configs: models of several parts, each with a config of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from fmjax.core.errors import ConfigError
from fmjax.models.config import ModelConfig
from fmjax.models.heads import HeadedConfig


@dataclasses.dataclass(frozen=True)
class NestedConfig(HeadedConfig):
    """Base of such configs; config.json holds the parts as objects under the fields' names.

    A part can be given as a mapping too: to the class, all that differs from the defaults; to
    `replace`, the fields that change.

    Attributes:
      PARTS: field → the class of its config.
    """

    PARTS: ClassVar[Mapping[str, type[ModelConfig]]]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, cls in self.PARTS.items():
            part = getattr(self, name)
            if isinstance(part, Mapping):
                part = cls.from_hf(part)
                object.__setattr__(self, name, part)
            if not isinstance(part, cls):
                raise ConfigError(f"config: {name} must be a {cls.__name__}, not {part!r}")

    @classmethod
    def _read(cls, hf: dict[str, Any]) -> dict[str, Any]:
        hf = super()._read(hf)
        for name, part in cls.PARTS.items():
            # Early files give the part twice. The second object counts, and so do the defaults of
            # what it leaves out: that is how transformers reads them.
            first, second = hf.pop(name, None), hf.pop(f"{name}_dict", None)
            hf[name] = part.from_hf((second if second is not None else first) or {})
        return hf

    def _write(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._write(values)
        for name in self.PARTS:
            part = getattr(self, name).to_hf()
            # A part stands under the head of the whole.
            values[name] = {k: v for k, v in part.items() if k != "architectures"}
        return values

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; a mapping changes some fields of a part.

        Raises:
          ConfigError: a name that is no field.
        """
        parts = {
            name: getattr(self, name).replace(**value)
            for name, value in changes.items()
            if name in self.PARTS and isinstance(value, Mapping)
        }
        return super().replace(**(changes | parts))


class ImageTextConfig(NestedConfig):
    """Base of the configs of an encoder of images and one of texts, whose sizes are its own too.

    Fields of those that extend it: `text_config` and `vision_config`.
    """

    @property
    def _usual_classifier_dropout(self) -> float:
        return 0.0

    @property
    def position_limit(self) -> int:
        """Tokens of the longest text."""
        return self.text_config.position_limit

    @property
    def image_size(self) -> int:
        """Side of the images that the position table is made for, in pixels."""
        return self.vision_config.image_size

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels."""
        return self.vision_config.patch_size

    @property
    def num_channels(self) -> int:
        """C."""
        return self.vision_config.num_channels

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return self.vision_config.num_patches
