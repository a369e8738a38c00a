"""ALiBi: positions as a linear bias on the attention scores (arXiv:2108.12409).

The bias grows with the place of the key alone. A query's own place would add the same to all its
scores, which softmax does not see. Shapes: B batch, H heads, S key slots.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def slopes(heads: int) -> np.ndarray:
    """f32 [H]: the geometric sequence from 2^(−8/H) for a power of two.

    Any other number of heads takes the slopes of the power of two below it, and then every second
    one of the power of two above.
    """
    below = 1 << heads.bit_length() - 1
    series = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    between = [2 ** (-4 * i / below) for i in range(1, 2 * (heads - below), 2)]
    return np.array(series + between, np.float32)


def token_positions(valid_BS: jax.Array, slots_1S: jax.Array | None = None) -> jax.Array:
    """i32 [B, S]: how many tokens stand before each slot in its row; 0 where there is none.

    Args:
      valid_BS: bool, which slots hold a token. Padding may stand anywhere.
      slots_1S: i32, where the slots stand in the text; None: in order.
    """
    if slots_1S is not None:
        order, slots = jnp.argsort(slots_1S[0]), slots_1S[0]
        return token_positions(valid_BS[:, order])[:, slots]
    valid = valid_BS.astype(jnp.int32)
    return (jnp.cumsum(valid, -1) - 1) * valid


def alibi(heads: int, positions_BS: jax.Array, precision: Any = jnp.float32) -> jax.Array:
    """slope · position of the key, for `attention(bias=…)`.

    Args:
      heads: H.
      positions_BS: i32, where each key stands.
      precision: the dtype to whose precision slopes, positions and products are rounded, for
        models that were trained with such a bias.

    Returns:
      f32 [B, H, 1, S].
    """
    info = jnp.finfo(precision)

    def rounded(x: jax.Array) -> jax.Array:
        # A cast there and back is no rounding: XLA may leave it out.
        return jax.lax.reduce_precision(x, info.nexp, info.nmant)

    slope = rounded(jnp.asarray(slopes(heads)))
    position = rounded(positions_BS.astype(jnp.float32))
    return rounded(slope[:, None, None] * position[:, None, None, :])
