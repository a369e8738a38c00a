"""Training several adapters at once."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import DataError
from fmjax.peft.bank import select


@dataclasses.dataclass(frozen=True)
class Routed:
    """An objective over a bank: variables["adapter"] is the bank, the batch says who uses what.

    The batch has `adapter_rows` i32 [B] beside what the objective itself reads. Each adapter
    learns from its own rows only; number 0 never changes its outputs.

    Attributes:
      objective: whose loss it is. Its model sees the B rows in the order of the batch, or k rows
        for each of them, side by side (texts that are compared). What it computes without an
        adapter, such as a reference, stays without.
    """

    objective: Any

    @property
    def decomposes(self) -> bool:
        """Whether a batch can be cut into parts."""
        return getattr(self.objective, "decomposes", True)

    @property
    def unit(self) -> str:
        """What the batches are made of: "tokens" or "examples"."""
        return getattr(self.objective, "unit", "tokens")

    def init(self, variables: Any) -> Any:
        """What the objective keeps."""
        return self.objective.init(variables)

    def summarize(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """The objective's own."""
        own = getattr(self.objective, "summarize", None)
        return own(means) if own else means

    def loss(
        self,
        apply: Callable[..., Any],
        variables: Any,
        extra: Any,
        batch: Mapping[str, jax.Array],
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, dict[str, Any], Any]:
        """The objective's, with each row's own adapter.

        Raises:
          DataError: a batch without adapter_rows.
        """
        if "adapter_rows" not in batch:
            raise DataError("the batch has no adapter_rows; it needs i32 [batch], 0 for no adapter")
        rest = {name: x for name, x in batch.items() if name != "adapter_rows"}

        def routed(variables: Any, **inputs: Any) -> Any:
            if COLLECTION in variables:
                rows = _repeated(batch["adapter_rows"], len(inputs["input_ids"]))
                variables = variables | {COLLECTION: select(variables[COLLECTION], rows)}
            return apply(variables, **inputs)

        return self.objective.loss(routed, variables, extra, rest, rng)


def _repeated(rows: jax.Array, count: int) -> jax.Array:
    """The adapter of each of `count` rows, which stem from those of the batch in order."""
    if count % len(rows):
        raise DataError(
            f"the batch has {len(rows)} adapter_rows, and the model sees {count} rows; give one "
            "number for each row of the batch"
        )
    return jnp.repeat(jnp.asarray(rows), count // len(rows))
