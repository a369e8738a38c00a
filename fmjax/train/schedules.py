"""Schedules: functions of the number of updates applied so far.

Those of learning rates warm up: update 0 has rate 0 then, as in Optax and transformers. `cosine`
and `ramp` are for anything else, such as a weight decay or a teacher's momentum and temperature.
"""

import math

import jax.numpy as jnp
import optax

from fmjax.core.errors import ConfigError


def constant(peak: float, *, warmup: int = 0) -> optax.Schedule:
    """Linear warm-up over `warmup` updates, then `peak` for ever."""
    _check(peak, warmup, warmup)
    return _after_warmup(peak, warmup, optax.constant_schedule(peak))


def linear(peak: float, steps: int, *, warmup: int = 0, end: float = 0.0) -> optax.Schedule:
    """Linear warm-up to `peak`, then linear decay that reaches `end` at update `steps`."""
    _check(peak, steps, warmup)
    return _after_warmup(peak, warmup, optax.linear_schedule(peak, end, max(steps - warmup, 1)))


def warmup_cosine(
    peak: float, steps: int, *, warmup: int = 0, end: float | None = None
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a half cosine (arXiv:1608.03983) down to `end` at `steps`.

    Args:
      peak: highest rate.
      steps: updates in all, warm-up included.
      warmup: updates of warm-up.
      end: last rate; None is a tenth of the peak.
    """
    _check(peak, steps, warmup)
    end = peak / 10 if end is None else end
    alpha = end / peak if peak else 0.0
    decay = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha)
    return _after_warmup(peak, warmup, decay)


def warmup_stable_decay(
    peak: float, steps: int, *, warmup: int = 0, decay: int | None = None, end: float = 0.0
) -> optax.Schedule:
    """WSD (arXiv:2404.06395): warm-up, a plateau, and a linear decay over the last updates.

    Args:
      peak: rate of the plateau.
      steps: updates in all.
      warmup: updates of warm-up.
      decay: updates of the decay; None is a tenth of `steps`.
      end: last rate.
    """
    decay = steps // 10 if decay is None else decay
    _check(peak, steps, warmup + decay)
    stable = steps - warmup - decay
    plateau = optax.constant_schedule(peak)
    fall = optax.linear_schedule(peak, end, max(decay, 1))
    return _after_warmup(peak, warmup, optax.join_schedules([plateau, fall], [stable]))


def cosine(start: float, end: float, steps: int) -> optax.Schedule:
    """Half a cosine from `start` to `end` at update `steps`, and `end` from there on."""
    if steps < 1:
        raise ConfigError(f"schedule: a cosine over {steps} steps; it takes at least 1")

    def at(step):
        share = jnp.clip(step / steps, 0, 1)
        return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * share))

    return at


def ramp(start: float, end: float, steps: int) -> optax.Schedule:
    """A straight line from `start` to `end` at update `steps`, and `end` from there on."""
    if steps < 1:
        raise ConfigError(f"schedule: a ramp over {steps} steps; it takes at least 1")
    return lambda step: start + (end - start) * jnp.clip(step / steps, 0, 1)


def later(value: optax.ScalarOrSchedule, start: int) -> optax.ScalarOrSchedule:
    """The schedule from update `start` on, for what counts its updates from there.

    A number stays as it is.
    """
    return (lambda step: value(step + start)) if callable(value) else value


def _after_warmup(peak: float, warmup: int, rest: optax.Schedule) -> optax.Schedule:
    if not warmup:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])


def _check(peak: float, steps: int, shaped: int) -> None:
    if not 0 <= peak < math.inf:
        raise ConfigError(f"learning rate {peak} must be a number that is not negative")
    if not 0 <= shaped <= steps:
        raise ConfigError(f"schedule: warm-up and decay take {shaped} of {steps} steps; shorten it")
