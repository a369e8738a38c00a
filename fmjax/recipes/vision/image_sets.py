"""Training and held-out pictures from `Images` settings, and the views without chance in them."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.data import Tokenizer, augment
from fmjax.data.images import (
    Captions,
    ImageBatches,
    ImageEvalBatches,
    ImageSource,
    image_batches,
    image_eval_batches,
    open_images,
)
from fmjax.data.images.names import has_splits, split_of
from fmjax.recipes.vision.pretrain import PretrainImages
from fmjax.recipes.vision.settings import Images
from fmjax.recipes.vision.start import ImageStart

CAPTIONED = ("clip", "siglip")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a run reads.

    Attributes:
      train: endless and resumable.
      held_out: one pass over (at most `--held-out` of) the held-out pictures.
      bank: one pass over (at most `--bank`) training pictures, for the neighbours' vote.
      classes: names of the labels; empty without.
      examples: number of training pictures.
      whole: raw batch → batch with pixel_values, the middle of each picture, normalised.
      unscaled: the same from 0 to 1.
      labelled: training batches have labels.
      tokenizer: of the captions, if any.
    """

    train: ImageBatches
    held_out: ImageEvalBatches
    bank: ImageEvalBatches
    classes: tuple[str, ...]
    examples: int
    whole: augment.CenterCrop
    unscaled: augment.CenterCrop
    labelled: bool
    tokenizer: Tokenizer | None = None

    @property
    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what a step reads.

        Raises:
          DataError: no held-out picture can be used.
        """
        for batch in self.held_out:
            # Another process may have the ones that can be.
            if batch["example_weight"].any() or jax.process_count() > 1:
                break
        else:
            raise DataError(
                f"no held-out picture can be used, {self.held_out.report()}; give others by "
                "--eval-images"
            )
        rows = jax.process_count()
        return {
            name: jax.ShapeDtypeStruct((len(x) * rows, *x.shape[1:]), x.dtype)
            for name, x in batch.items()
            if self.labelled or name != "labels"
        }

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
    train, held_out = open_both(data, mixed=settings.objective != "supervised")
    for name, source in ((data.images, train), (data.eval_images or data.images, held_out)):
        _check(settings.objective, name, source)
    if train.class_names != held_out.class_names and settings.objective not in CAPTIONED:
        raise DataError(
            f"--eval-images {data.eval_images} has other classes than --images {data.images}: "
            f"{list(held_out.class_names[:5])} and {list(train.class_names[:5])}, …; lay out both "
            "alike"
        )
    held_out = held_out.sample(settings.probing.held_out)
    size, mean, std = start.image_size, start.mean, start.std
    stored = data.stored_size or round(size * 8 / 7)
    form: dict[str, Any] = {
        "batch_size": data.batch_size,
        "image_size": stored,
        "on_bad": data.broken,
        "workers": data.workers,
    }
    if settings.objective in CAPTIONED:
        form["captions"] = Captions(start.tokenizer, start.caption_length, start.masks_padding)
    # Pictures without a label are learnt from where labels are not; only the vote needs them.
    labels = settings.objective == "supervised"
    return Pictures(
        image_batches(train, **form, labels=labels, seed=settings.optimization.seed),
        image_eval_batches(held_out, **form),
        image_eval_batches(train.sample(settings.probing.bank), **form),
        train.class_names,
        len(train),
        augment.CenterCrop(size, _resize(size), mean=mean, std=std),
        augment.CenterCrop(size, _resize(size), mean=(0.0,), std=(1.0,)),
        labels,
        start.tokenizer,
    )


def open_both(data: Images, mixed: bool = False) -> tuple[ImageSource, ImageSource]:
    """(training pictures, held-out pictures), of which none is in both.

    Args:
      data: which.
      mixed: see `ImageFolder`.

    Raises:
      DataError: pictures that cannot be found or read, or are in both.
      ConfigError: nothing is held out.
    """
    name, part = split_of(data.images)
    form = {"held_out": data.eval_fraction, "mixed": mixed}
    if not data.eval_images:
        if part:
            raise ConfigError(
                f"--images {data.images} is one part of a set, with nothing held out; give the set "
                f"without :{part}, or --eval-images"
            )
        train, held_out = (open_images(name, split, **form) for split in ("train", "validation"))
        return train, held_out
    other, other_part = split_of(data.eval_images)
    # What the set itself holds out stays out, whatever is measured on; and of one set for both,
    # the part that is measured on.
    same = os.path.abspath(name) == os.path.abspath(other)
    own = part or ("train" if same or has_splits(name) else "all")
    train = open_images(name, own, **form)
    held_out = open_images(
        other,
        other_part or ("validation" if same else "all"),
        class_names=train.class_names or None,
        **form,
    )
    _check_apart(data, train, held_out)
    return train, held_out


def _check_apart(data: Images, train: ImageSource, held_out: ImageSource) -> None:
    """Refuses held-out pictures that are trained on.

    Raises:
      DataError: names the first.
    """
    names = {os.path.abspath(held_out.name(i)) for i in range(len(held_out))}
    twice = [n for i in range(len(train)) if os.path.abspath(n := train.name(i)) in names]
    if twice:
        raise DataError(
            f"{len(twice)} of the pictures of --eval-images {data.eval_images} are in --images "
            f"{data.images} too, such as {twice[0]}; give other pictures, or leave --eval-images "
            "out, and a part is held out"
        )


def _check(objective: str, name: str, source: ImageSource) -> None:
    """Refuses pictures without what the objective reads, before the first step.

    Raises:
      DataError: names the set.
    """
    if objective == "supervised" and not source.class_names:
        raise DataError(
            f"--objective supervised needs labels, and {name} has none; lay a folder's pictures "
            "into a folder for each class, or choose an objective without, such as dino"
        )
    if objective == "supervised" and len(source.class_names) < 2:
        only = source.class_names[0]
        raise DataError(
            f"--objective supervised needs two classes or more, and all of {name} is {only!r}; "
            f"give a folder that has one for each class, as {os.path.join(name, only)} may be"
        )
    if objective in CAPTIONED and not any(map(_captioned, _some(source))):
        raise DataError(
            f"--objective {objective} needs captions, and {name} has none; give a .tsv or .jsonl "
            "of paths and captions, .tar shards, or openmoji"
        )


def _some(source: ImageSource, count: int = 100) -> Iterator[Mapping[str, Any]]:
    """At most `count` examples from all over the source; those that cannot be read are left out."""
    for i in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)):
        try:
            yield source[int(i)]
        except Exception:  # whatever a disk or an archive raises: it is counted when it is its turn
            continue


def _captioned(example: Mapping[str, Any]) -> bool:
    return "caption" in example or "captions" in example


def _resize(size: int) -> int:
    """What the shorter side becomes before the middle is cut out: of small pictures all is seen."""
    return round(size * 8 / 7) if size >= 96 else size
