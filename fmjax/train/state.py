"""All that changes while training, as one pytree."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """What a step takes and gives back.

    Attributes:
      step: i32 [], steps taken; counts skipped ones too.
      variables: {"params": …, "adapter": …?, …}, trained and frozen leaves together.
      opt_state: of the optimizer, over the trained leaves only.
      extra: what the objective keeps besides variables (batch statistics, an EMA teacher).
      rng: typed key; never changes, each step folds its number in.
      skipped: i32 [], updates dropped because the loss or the gradient was not finite.
    """

    step: jax.Array
    variables: Any
    opt_state: Any
    extra: Any
    rng: jax.Array
    skipped: jax.Array
