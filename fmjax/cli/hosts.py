"""Commands that run as several processes."""

import os
import sys
from typing import Any


def join(options: Any) -> None:
    """Joins the other processes of a training command, before anything touches a device.

    Process 0 alone speaks on standard output; errors come from each.

    Raises:
      ConfigError: see `fmjax.parallel.start`.
    """
    hardware = getattr(options, "hardware", None)
    if hardware is None:
        return
    from fmjax.parallel import start

    if start(hardware.coordinator, hardware.processes, hardware.process) is None:
        return
    import jax

    if jax.process_index():
        # The file itself, since gloo prints past Python.
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def failed(code: int) -> int:
    """The exit code; a process of several leaves by itself, see `fmjax.parallel.distributed`."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        from fmjax.parallel.distributed import leave

        leave(code)
    return code


def lost_another(error: BaseException) -> bool:
    """Whether this process failed only because another one of the run is gone."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return False
    signs = ("gloo", "connection", "unavailable", "deadline_exceeded", "heartbeat", "barrier")
    return isinstance(error, jax.errors.JaxRuntimeError) and any(
        sign in str(error).lower() for sign in signs
    )
