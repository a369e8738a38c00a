"""Where a run on images begins: architecture, weights, tokenizer, and how pixels are normalised."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

import fmjax
from fmjax.core import tree
from fmjax.core.errors import ConfigError, TokenizerError
from fmjax.data import Tokenizer, check_fits, load_tokenizer
from fmjax.data.encoding import encode_batch
from fmjax.data.images import ImageProcessor, processor_files
from fmjax.models.config import ModelConfig
from fmjax.recipes.models import architecture, parse_override, special_ids
from fmjax.recipes.vision.pretrain import PretrainImages


@dataclasses.dataclass(frozen=True)
class ImageStart:
    """See the module.

    Attributes:
      config: the architecture.
      directory: whose weights to start from; None starts from random ones.
      tokenizer: of models that read texts too; else None.
      processor: how pictures become pixel values when the trained model is used.
      image_size: side of the square that the model sees, in pixels.
      mean, std: of the channels, that pixels are normalised by.
      caption_length: tokens of a caption; 0 without texts.
      masks_padding: texts are read without the padding behind them, as all but SigLIP's are.
    """

    config: ModelConfig
    directory: Path | None
    tokenizer: Tokenizer | None
    processor: ImageProcessor
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    caption_length: int
    masks_padding: bool

    def params(self, module: nn.Module, seed: int, **place: Any) -> dict[str, Any]:
        """Parameters of what the step applies: the directory's where there is one, and random ones
        for what it lacks, such as a head that is thrown away afterwards.

        Args:
          module: of the learner.
          seed: of the random ones.
          place: `mesh` and `rules`.

        Raises:
          CheckpointError: weights that do not fit.
        """
        key = jax.random.key(seed)
        if self.directory is None:
            return fmjax.init_params(module, key, **place)
        backbone = getattr(module, "backbone", None)
        config = (backbone or module).config
        if getattr(config, "use_mask_token", False) != getattr(
            self.config, "use_mask_token", False
        ):
            raise ConfigError(
                f"{self.directory} has no token that stands for hidden patches; --objective dinov2 "
                "starts from a DINOv2, or from random weights"
            )
        override = {"head": config.head}
        if config.head == "image-classification":
            override |= {"id2label": list(config.id2label), "problem_type": config.problem_type}
        _, params = fmjax.from_pretrained(
            self.directory, override=override, new_head=key, param_dtype="float32", **place
        )
        if backbone is None:
            return params
        missing = [p for p in tree.flatten(fmjax.abstract_params(module)) if not _of(p, "backbone")]
        return fmjax.init_params(module, key, paths=missing, **place) | {"backbone": params}


def _of(path: str, part: str) -> bool:
    return path.split("/")[0] == part


def resolve_images(settings: PretrainImages) -> ImageStart:
    """What the settings name.

    Raises:
      ConfigError: an unknown name or field, a change to a model that has weights, or a size that
        the model cannot see.
      TokenizerError: no tokenizer where captions are read, or one with ids that the model lacks.
    """
    path, changes = Path(settings.model), nested(parse_override(settings.override))
    if path.is_dir() and changes:
        raise ConfigError(
            f"--override changes the architecture, which the weights in {path} would not fit; "
            f"start from random weights with --model {path / 'config.json'}"
        )
    config = architecture(settings.model)
    home = path if path.is_dir() else path.parent if path.suffix == ".json" else None
    tokenizer = None
    if hasattr(config, "text_config"):
        tokenizer = _tokenizer(settings, home)
        if home is None:
            config = config.replace(text_config=special_ids(tokenizer))
    config = config.replace(**changes) if changes else config
    if tokenizer is not None:
        check_fits(tokenizer, config.text_config.vocab_size)
    seen = getattr(config, "vision_config", config)
    if not hasattr(seen, "num_channels"):
        raise ConfigError(
            f"--model {settings.model}: {config.model_type} does not see images; give a size such "
            "as vit-s16, mae-b16, dinov2-s14, resnet-50 or clip-vit-b32"
        )
    size = settings.data.image_size
    said = "image_size" in (changes if seen is config else changes.get("vision_config", {}))
    if size and hasattr(seen, "image_size") and not (path.is_dir() or said):
        # Positions are made for what is seen; those of weights that exist are interpolated.
        made = {"image_size": size}
        config = config.replace(**(made if seen is config else {"vision_config": made}))
    size = size or _size(seen)
    processor = _processor(path, config, size)
    length = 0
    if tokenizer is not None:
        most = config.text_config.max_position_embeddings
        length = settings.data.caption_length or most
        if not 2 < length <= most:
            raise ConfigError(f"--caption-length {length}: the model has {most} positions")
        if config.model_type == "siglip" and length != most:
            # It reads a text at its last place.
            if path.is_dir():
                raise ConfigError(
                    f"--caption-length {length}: this SigLIP reads texts at place {most}; leave "
                    "the flag out"
                )
            config = config.replace(text_config={"max_position_embeddings": length})
        _check_end(tokenizer, config, length)
    return ImageStart(
        config,
        path if path.is_dir() else None,
        tokenizer,
        processor,
        size,
        tuple(processor.image_mean),
        tuple(processor.image_std),
        length,
        config.model_type != "siglip",
    )


def _processor(path: Path, config: ModelConfig, size: int) -> ImageProcessor:
    """The directory's own, else that of the family's published models, for pictures of a size."""
    kind = config.model_type
    if path.is_dir() and processor_files.read(path) is not None:
        processor = ImageProcessor.from_pretrained(path)
        if processor.output_size not in (None, (size, size)):
            own = ImageProcessor.for_model(kind, size)
            means = {"image_mean": processor.image_mean, "image_std": processor.image_std}
            processor = dataclasses.replace(own, **means)
    else:
        processor = ImageProcessor.for_model(kind, size)
    if processor.image_mean is None or processor.image_std is None:
        raise ConfigError(
            f"{path}: its preprocessor_config.json does not normalise pixels; give it image_mean "
            "and image_std"
        )
    return processor


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """{"vision_config.hidden_size": 64} → {"vision_config": {"hidden_size": 64}}."""
    result: dict[str, Any] = {}
    for name, value in changes.items():
        part, dot, field = name.partition(".")
        if dot:
            result.setdefault(part, {})[field] = value
        else:
            result[name] = value
    return result


def _tokenizer(settings: PretrainImages, home: Path | None) -> Tokenizer:
    if not settings.tokenizer and home is None:
        raise TokenizerError(
            f"--model {settings.model} has no tokenizer of its own; train one with `fmjax "
            "tokenizer --kind clip` and pass --tokenizer DIR"
        )
    return load_tokenizer(settings.tokenizer or home)


def _check_end(tokenizer: Tokenizer, config: ModelConfig, length: int) -> None:
    """CLIP reads a text at its end-of-text token, so texts must have one.

    Raises:
      TokenizerError: they have none, or its id is 2, which CLIP's files mean otherwise.
    """
    if config.model_type != "clip":
        return
    end = config.text_config.eos_token_id
    ids = encode_batch(tokenizer, ["a"], None, length)[0].ids
    if end == 2 or not ids or ids[-1] != end:
        raise TokenizerError(
            f"CLIP reads a text at its last token, id {end}, and this tokenizer ends a text with "
            f"{list(ids[-1:])}; train one with `fmjax tokenizer --kind clip`"
        )


def _size(config: ModelConfig) -> int:
    """Side of the square that a model is made for, 224 where it is made for none (ResNet)."""
    size = getattr(config, "image_size", 224)
    if isinstance(size, int):
        return size
    if size[0] != size[1]:
        raise ConfigError(
            f"the model is made for images of {size[0]} × {size[1]} pixels; give --image-size, the "
            "side of the square that it is to see"
        )
    return size[0]
