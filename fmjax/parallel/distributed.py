"""Starting many processes as one program, before anything touches a device."""

import contextlib
import os
import sys
import time
from types import TracebackType

import jax
from jax._src.distributed import global_state
from jax._src.xla_bridge import backends_are_initialized

from fmjax.core.errors import ConfigError
from fmjax.parallel.group import Group, find_group
from fmjax.parallel.roll_call import roll_call

TIMEOUT = 300
"""Seconds in which all processes must have found each other."""

GRACE = 5.0
"""Seconds that the process of the coordinator stays when it has failed."""

_TOO_LATE = (
    "JAX has already used a device; call fmjax.parallel.start before anything else in every process"
)


def start(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = TIMEOUT,
) -> Group | None:
    """Joins the group of processes, if there is one; call it before anything touches a device.

    CPU processes talk through gloo. A process that dies takes the others with it, so that a
    launcher can start all of them again.

    Args:
      coordinator, processes, process: see `find_group`.
      timeout: seconds in which all processes must have come.

    Returns:
      The group; None for a process that is alone.

    Raises:
      ConfigError: see `find_group`; a device was used before, the coordinator was not reached, or
        not all processes came.
    """
    group = find_group(coordinator, processes, process)
    if group is None:
        return None
    if jax.distributed.is_initialized():
        raise ConfigError(
            "this process has already joined its group; call fmjax.parallel.start once"
        )
    # JAX has no public way to ask; it would refuse only after everybody has been waited for.
    if backends_are_initialized():
        raise ConfigError(_TOO_LATE)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if group.coordinator is not None:
        roll_call(group.coordinator, group.count, group.index, timeout)
    try:
        if group.coordinator is None:
            jax.distributed.initialize(initialization_timeout=timeout)
        else:
            local = group.local_devices
            jax.distributed.initialize(
                group.coordinator,
                group.count,
                group.index,
                local_device_ids=None if local is None else list(local),
                # JAX's own look at the environment would give each SLURM task one GPU.
                cluster_detection_method="deactivate",
                initialization_timeout=timeout,
            )
    except (RuntimeError, ValueError) as e:
        raise ConfigError(_explain(group, timeout, str(e))) from e
    _fail_together()
    return group


def leave(code: int) -> None:
    """Ends a process that has failed, without JAX's wait at the exit for all the others, which wait
    for this one in their next collective.

    Those that have failed too, for the same reason, are killed when the coordinator goes: its
    process stays for `GRACE`, so that they can say so.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader may have gone, or it is closed
            stream.flush()
    if global_state.service is not None:
        time.sleep(GRACE)
    os._exit(code)


def _fail_together() -> None:
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(kind, error, trace)
        leave(1)

    sys.excepthook = hook


def _explain(group: Group, timeout: int, reason: str) -> str:
    reason = " ".join(reason.split())[:300]
    if group.coordinator is None:
        return (
            f"the processes of the TPU pod did not find each other in {timeout} s: {reason}; start "
            "the same command on all hosts of the slice"
        )
    if "must be called before" in reason:
        return _TOO_LATE
    return f"process {group.index} of {group.count} at {group.coordinator}: {reason}"
