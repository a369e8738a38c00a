"""Training and held-out pictures from `Images` settings, and the views without chance in them."""

import dataclasses
from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.data import Tokenizer, augment
from fmjax.data.images import (
    ImageBatches,
    ImageEvalBatches,
    image_batches,
    image_eval_batches,
    image_text_batches,
    image_text_eval_batches,
    open_images,
)
from fmjax.recipes.vision.pretrain import PretrainImages
from fmjax.recipes.vision.start import ImageStart

CAPTIONED = ("clip", "siglip")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a run reads.

    Attributes:
      train: endless and resumable.
      held_out: one pass over the held-out pictures.
      bank: one pass over (at most `--bank`) training pictures, for the neighbours' vote.
      classes: names of the labels; empty without.
      examples: number of training pictures.
      whole: raw batch → batch with pixel_values, the middle of each picture, normalised.
      unscaled: the same from 0 to 1.
      tokenizer: of the captions, if any.
    """

    train: ImageBatches
    held_out: ImageEvalBatches
    bank: ImageEvalBatches
    classes: tuple[str, ...]
    examples: int
    whole: augment.CenterCrop
    unscaled: augment.CenterCrop
    tokenizer: Tokenizer | None = None

    def words(self, ids: Any) -> str:
        """A caption i32[T] as text, without its special tokens and filling."""
        known = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        known.add(self.tokenizer.pad_token_id)
        return self.tokenizer.decode([int(i) for i in ids if int(i) not in known]).strip()


def open_pictures(settings: PretrainImages, start: ImageStart) -> Pictures:
    """Opens the sets of a run.

    Raises:
      DataError: pictures that cannot be found or read, or none held out.
      ConfigError: a fraction out of range.
    """
    data = settings.data
    if not data.eval_images and not 0 < data.eval_fraction < 1:
        raise ConfigError(f"--eval-fraction {data.eval_fraction} must lie between 0 and 1")
    if data.eval_images:
        train = open_images(data.images)
        held_out = open_images(data.eval_images, class_names=train.class_names or None)
    else:
        train, held_out = (
            open_images(data.images, split, held_out=data.eval_fraction)
            for split in ("train", "validation")
        )
    size, mean, std = start.image_size, start.mean, start.std
    stored = data.stored_size or round(size * 8 / 7)
    form: dict[str, Any] = {
        "batch_size": data.batch_size,
        "image_size": stored,
        "on_bad": data.broken,
        "workers": data.workers,
    }
    shuffled = {"seed": settings.optimization.seed}
    few = train.sample(settings.probing.bank)
    if settings.objective in CAPTIONED:
        words = {"max_length": start.caption_length, "attention_mask": settings.objective == "clip"}
        batches = image_text_batches(train, start.tokenizer, **form, **shuffled, **words)
        passes = [
            image_text_eval_batches(s, start.tokenizer, **form, **words) for s in (held_out, few)
        ]
    else:
        batches = image_batches(train, **form, **shuffled)
        passes = [image_eval_batches(s, **form) for s in (held_out, few)]
    return Pictures(
        batches,
        *passes,
        train.class_names,
        len(train),
        augment.CenterCrop(size, _resize(size), mean=mean, std=std),
        augment.CenterCrop(size, _resize(size), mean=(0.0,), std=(1.0,)),
        start.tokenizer,
    )


def _resize(size: int) -> int:
    """What the shorter side becomes before the middle is cut out: of small pictures all is seen."""
    return round(size * 8 / 7) if size >= 96 else size
