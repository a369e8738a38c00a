"""Which attention kernel serves a call: what each can do, and what "auto" takes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.core import logical
from fmjax.core.errors import ConfigError
from fmjax.nn.attention_cudnn import plain
from fmjax.nn.masks import Mask

IMPLEMENTATIONS = ("auto", "xla", "blockwise", "splash", "cudnn")

# From so many keys on a kernel of the platform is taken, or blocks where scores are large.
LONG = 1024
# Bytes of float32 scores on a device that are large.
LARGE = 64 << 20
# Bytes of a mask that cuDNN is given spelt out, at most.
_DENSE = 1 << 30


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of attention, as far as the choice depends on it.

    Attributes:
      batch, heads: B and H of one device.
      queries, keys, head_dim: T, S, K.
      dtype: of queries, keys and values.
      mask: who sees whom.
      bias, softcap, dropout: whether there is one; dropout that is active.
      cached: keys come from a cache that earlier calls filled.
      platform: see `fmjax.core.logical.platform`.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: Any
    mask: Mask
    bias: bool = False
    softcap: bool = False
    dropout: bool = False
    cached: bool = False
    platform: str = "cpu"

    @property
    def scores(self) -> int:
        """Bytes of the float32 scores on a device."""
        return 4 * self.batch * self.heads * self.queries * self.keys


def choose(requested: str, case: Case) -> str:
    """The kernel for a call: one of "xla", "blockwise", "splash", "cudnn".

    "auto" takes splash attention on TPUs and cuDNN on NVIDIA GPUs from `LONG` keys on, where they
    can do what is asked; else blocks, where there are `LONG` keys and `LARGE` scores; else XLA,
    which also serves active dropout. A step of decoding (new queries to a filled cache) is never
    splash's or cuDNN's, also where they are asked for: it is XLA's, or takes blocks by that rule.

    Raises:
      ConfigError: an unknown kernel, or one that was asked for and cannot do this.
    """
    if requested not in IMPLEMENTATIONS:
        raise ConfigError(
            f"attention {requested!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    long = case.keys >= LONG and case.queries > 1
    by_size = "blockwise" if long and case.scores > LARGE and not case.dropout else "xla"
    if requested != "auto":
        if case.cached and requested in ("splash", "cudnn"):
            return by_size
        if reason := refusal(requested, case):
            raise ConfigError(f"attention {requested!r} {reason}; use 'auto' or 'xla' instead")
        return requested
    fused = {"tpu": "splash", "gpu": "cudnn"}.get(case.platform)
    if fused and long and not case.cached and not refusal(fused, case):
        return fused
    return by_size


def refusal(kernel: str, case: Case) -> str | None:
    """Why the kernel cannot serve the call, in words that follow its name, or None."""
    if kernel == "xla":
        return None
    if case.dropout:
        return "has no dropout of probabilities"
    if kernel == "blockwise":
        return None
    if case.bias:
        return "adds no bias (ALiBi) to the scores"
    return (_splash if kernel == "splash" else _cudnn)(case)


def _splash(case: Case) -> str | None:
    mask, dtype = case.mask, jnp.dtype(case.dtype).name
    if case.platform not in ("tpu", "cpu"):
        return f"runs on TPUs, and for tests on CPUs, not on {case.platform!r}"
    if case.head_dim % 8:
        return f"takes head sizes that are multiples of 8, not {case.head_dim}"
    if dtype not in ("bfloat16", "float32"):
        return f"computes in bfloat16 and float32, not in {dtype}"
    if mask.prefix is not None:
        return "knows no prefix of its own in every row"
    if not isinstance(mask.offset, int):
        return "needs queries whose first slot is fixed"
    if not isinstance(mask.window, int | None) and not mask.windows:
        return "needs to know the sizes that a window may have"
    if (mask.virtual or mask.shared) and (
        mask.segments is not None or (mask.valid is not None and mask.window is not None)
    ):
        return "cannot show virtual tokens to every packed text, nor to padded ones in a window"
    return None


def _cudnn(case: Case) -> str | None:
    mask, dtype = case.mask, jnp.dtype(case.dtype).name
    if case.platform != "gpu" or jax.default_backend() != "gpu":
        return f"runs on NVIDIA GPUs that are present, not on {case.platform!r}"
    capability = getattr(logical.device(), "compute_capability", "none")
    # AMD's are no numbers.
    major = int(capability.split(".")[0]) if capability[0].isdigit() else 0
    hopper = major >= 9
    if major < 8:
        return f"needs compute capability 8.0 (Ampere) or above, not {capability}"
    if dtype not in ("bfloat16", "float16"):
        return f"computes in bfloat16 and float16, not in {dtype}"
    if case.head_dim % 8 or case.head_dim > (256 if hopper else 128):
        most = 256 if hopper else 128
        return f"takes head sizes up to {most} that are multiples of 8, not {case.head_dim}"
    if case.softcap:
        return "has no soft cap of the scores"
    if not plain(mask, case.queries, case.keys):
        if case.queries % 2 or case.keys % 2:
            return f"takes this mask for even lengths only, not {case.queries} × {case.keys}"
        if 2 * case.batch * case.queries * case.keys > _DENSE:
            return f"would hold a mask of {case.queries} × {case.keys} in every row"
    return None
