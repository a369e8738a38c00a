"""Prompt tuning (arXiv:2104.08691): the vectors of a few virtual tokens before every text."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.core.params import ParamSpec
from fmjax.nn.prompt_port import LEAF
from fmjax.peft.base import Base, Weight
from fmjax.peft.config import saved_by
from fmjax.peft.names import Names, names

DTYPE = np.dtype("float32")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """P trained vectors in the place of words, before the tokens of every row.

    They take the positions 0 … P−1, real tokens those from P on. In a decoder all texts of a
    packed row have the prompt before them. A BERT attends from the prompt to the text too, so its
    rows hold one text each, and its pooler reads the first virtual token, as in PEFT. A decoder's
    classifier reads the last real token (PEFT's the last slot, padding or not).

    Attributes:
      num_virtual_tokens: P.
      init_ids: tokens whose vectors the prompt starts from, repeated or cut to P; for example
        `tokenizer.encode("Classify if the tweet is a complaint:")`. None: N(0, 1).
      modules_to_save: modules that are trained whole, as of `LoRA`.

    Raises:
      ConfigError: a number that is not positive, or ids that are none.
    """

    num_virtual_tokens: int = 20
    init_ids: tuple[int, ...] | None = None
    modules_to_save: Names = ()

    def __post_init__(self) -> None:
        check_length("Prompt", self.num_virtual_tokens)
        saved = names("Prompt", "modules_to_save", self.modules_to_save, listed=True)
        object.__setattr__(self, "modules_to_save", saved)
        if self.init_ids is None:
            return
        ids = tuple(np.asarray(self.init_ids).reshape(-1).tolist())
        if not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise ConfigError(
                f"Prompt: init_ids={self.init_ids!r} must be token ids; leave them out for a "
                "random start"
            )
        object.__setattr__(self, "init_ids", ids)

    def saves(self, name: str) -> bool:
        """Whether `modules_to_save` cover this module or one that holds it."""
        return bool(saved_by(self.modules_to_save, name))


def check_length(spec: str, P: Any) -> None:
    """Refuses what is no number of virtual tokens.

    Raises:
      ConfigError: such a value.
    """
    if type(P) is not int or P < 1:
        raise ConfigError(f"{spec}: num_virtual_tokens={P!r} must be a positive integer")


def table(base: Base) -> Weight:
    """The table of the words, [V, D].

    Raises:
      ConfigError: a model that reads no words.
    """
    for weight in base.weights:
        if not weight.linear and weight.axes[0] == "vocab":
            return weight
    raise ConfigError(
        f"a prompt stands among words, which a {base.model_type} model does not read; use a prefix"
    )


def check(spec: Any, base: Base) -> None:
    """Refuses a prompt that does not fit the model.

    Raises:
      ConfigError: one that leaves no position to a token, or starts from ids that are no words.
    """
    limit = base.model.config.position_limit
    if limit is not None and spec.num_virtual_tokens >= limit:
        raise ConfigError(
            f"{type(spec).__name__}: num_virtual_tokens={spec.num_virtual_tokens} leave no room "
            f"among the {limit} positions of this {base.architecture}; use fewer"
        )
    words = table(base).shape[0]
    if outside := [i for i in getattr(spec, "init_ids", None) or () if i >= words]:
        raise ConfigError(
            f"Prompt: init_ids have {outside[0]}, outside the model's vocabulary of {words}; use "
            "the tokenizer of this model"
        )


def abstract(spec: Any, base: Base) -> dict[str, Any]:
    """The adapter as nested dicts of `ParamSpec`: `prompt` f32 [P, D] at the words' table."""
    words = table(base)
    shape = (spec.num_virtual_tokens, words.shape[1])
    # Small and whole on every device: rows that are split like the batch read all of it.
    leaf = ParamSpec(shape, DTYPE, (None, None))
    return tree.unflatten({f"{words.path}/{LEAF}": leaf})


def place(base: Base, prompt: Any) -> dict[str, Any]:
    """Vectors [P, D] → adapter."""
    return tree.unflatten({f"{table(base).path}/{LEAF}": prompt})


def init(rng: jax.Array, spec: Prompt, base: Base, params: Any = None) -> dict[str, Any]:
    """A prompt of N(0, 1), or of the vectors that the words of `init_ids` enter the layers with.

    Unlike other adapters a new prompt changes what the model computes. Traceable.

    Raises:
      ConfigError: init_ids without `params` that hold the table.
    """
    words = table(base)
    shape = (spec.num_virtual_tokens, words.shape[1])
    if spec.init_ids is None:
        return place(base, jax.random.normal(rng, shape, DTYPE))
    own = tree.flatten(params or {}).get(words.target.path)
    if getattr(own, "shape", None) != words.spec.shape:
        raise ConfigError(
            f"Prompt: init_ids start from {words.target.path!r} {words.spec.shape}; pass params= "
            "of this model"
        )
    repeats = math.ceil(shape[0] / len(spec.init_ids))
    ids = np.array(spec.init_ids * repeats)[: shape[0]]
    # A prompt enters where words are scaled already.
    scale = base.model.config.embedding_scale or 1.0
    return place(base, jnp.take(own, ids, axis=0).astype(DTYPE) * scale)


def count(spec: Prompt, base: Base) -> int:
    """Number of trained parameters, P · D."""
    return spec.num_virtual_tokens * table(base).shape[1]
