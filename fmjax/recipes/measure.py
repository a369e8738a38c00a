"""Perplexity of a model on text: the model, the text and the objective brought together."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from fmjax.core import logical
from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError
from fmjax.data import Source, Tokenizer, eval_batches
from fmjax.evals import Perplexity, perplexity
from fmjax.nn import prefix_port, prompt_port
from fmjax.objectives.causal_lm import CausalLM
from fmjax.parallel import DEFAULT_RULES, shard_batch
from fmjax.recipes.models import open_model, parse_mesh
from fmjax.recipes.text import texts


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
      config: its architecture.
      tokenizer: its own.
      evaluate: (variables, batch) → (sum of nats, number of targets).
      variables: its params, and its adapter if it has one.
      mesh: the devices that split the batches.
    """

    config: Any
    tokenizer: Tokenizer
    evaluate: Callable[[Any, Mapping[str, Any]], tuple[jax.Array, jax.Array]]
    variables: Mapping[str, Any]
    mesh: jax.sharding.Mesh


def open_subject(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    mesh: str = "",
    dtype: str = "auto",
    quantize: str = "none",
) -> Subject:
    """Loads a model directory, and an adapter onto it, for measuring; see `open_model`.

    Raises:
      FmjaxError: what cannot be read, does not fit or does not divide.
    """
    devices = parse_mesh(mesh)
    module, variables, tokenizer = open_model(
        model, adapter, dtype=dtype, mesh=devices, quantize=quantize
    )
    return subject(module, variables, tokenizer, devices)


def subject(
    model: Any, variables: Mapping[str, Any], tokenizer: Tokenizer, mesh: jax.sharding.Mesh
) -> Subject:
    """A model in memory, for measuring; compiles once for all texts of one batch shape."""
    objective = CausalLM()

    @jax.jit
    def evaluate(variables: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        with logical.use(mesh, DEFAULT_RULES):
            return objective.loss(model.apply, variables, {}, batch, None)[:2]

    return Subject(model.config, tokenizer, evaluate, variables, mesh)


def measure(
    subject: Subject, source: Source, batch_size: int = 8, sequence_length: int = 512
) -> Perplexity:
    """The perplexity on every document of a source, packed into rows.

    Raises:
      ConfigError: rows longer than the model's context.
      ShardingError: rows that do not divide over the devices.
      DataError: an empty source.
    """
    adapter = subject.variables.get(COLLECTION, {})
    virtual = prefix_port.length(adapter) + prompt_port.length(adapter)
    check_length(subject.config, sequence_length, virtual)
    batches = eval_batches(
        source, subject.tokenizer, batch_size=batch_size, sequence_length=sequence_length
    )

    def evaluate(batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        return subject.evaluate(subject.variables, shard_batch(batch, subject.mesh, DEFAULT_RULES))

    return perplexity(evaluate, batches, texts([source]), batches.tokens)


def check_length(config: Any, sequence_length: int, virtual_tokens: int = 0) -> None:
    """Raises ConfigError if rows, after an adapter's virtual tokens, exceed the model's context."""
    names = ("position_limit", "max_position_embeddings", "n_positions")
    context = next(filter(None, (getattr(config, name, None) for name in names)), None)
    if context and sequence_length + virtual_tokens > context:
        beside = f" beside {virtual_tokens} virtual tokens" if virtual_tokens else ""
        raise ConfigError(
            f"sequence_length={sequence_length} is more than the model's context of {context}"
            f"{beside}; use {context - virtual_tokens} or less"
        )
