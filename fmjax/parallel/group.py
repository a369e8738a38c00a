"""Which processes make up a run: who coordinates, how many there are, which is this.

Told by arguments, or found in the environment: TPU pods, SLURM, and the variables that launchers
set on Kubernetes, Ray and the like. Nothing here touches a device.
"""

import glob
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from fmjax.core.errors import ConfigError

_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_REMEDY = "give --coordinator HOST:PORT --processes N --process I to every process"


@dataclass(frozen=True)
class Group:
    """A set of processes, seen from one of them.

    Attributes:
      coordinator: HOST:PORT on which process 0 listens; None leaves all three to JAX (TPU pods).
      count: of processes; None with `coordinator`.
      index: of this process; None with `coordinator`.
      local_devices: of this host's accelerators, those that this process owns; None: all.
      source: where it was found, for messages.
    """

    coordinator: str | None
    count: int | None
    index: int | None
    local_devices: tuple[int, ...] | None = None
    source: str = "arguments"


def find_group(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Group | None:
    """The group that this process belongs to; None where it is alone.

    What is not given is taken from the environment; `processes=1` says that there is no group
    whatever the environment says.

    Args:
      coordinator: "HOST:PORT".
      processes: how many there are.
      process: which this one is, from 0.
      environ: default `os.environ`.

    Raises:
      ConfigError: a part that neither arguments nor environment tell, or parts at odds.
    """
    environ = os.environ if environ is None else environ
    if processes == 1 and not coordinator and process in (None, 0):
        return None
    found = _from_launcher(environ) or _from_slurm(environ)
    if not coordinator and processes is None and process is None:
        if found is None and _on_tpu_pod(environ):
            return Group(None, None, None, source="the TPU pod")
        if found is None or (found.count == 1 and found.coordinator is None):
            return None
        return _checked(found)
    known = found or Group(None, None, None)
    return _checked(
        Group(
            coordinator or known.coordinator,
            known.count if processes is None else processes,
            known.index if process is None else process,
            known.local_devices,
            "the arguments" if found is None else f"the arguments and {found.source}",
        )
    )


def _checked(group: Group) -> Group | None:
    parts = {
        "--coordinator HOST:PORT": group.coordinator,
        "--processes N": group.count,
        "--process I": group.index,
    }
    if missing := [flag for flag, value in parts.items() if value is None]:
        raise ConfigError(
            f"{group.source} leave open {', '.join(missing)} of a run on several processes; "
            f"{_REMEDY}"
        )
    if group.count < 1:
        raise ConfigError(f"--processes {group.count} must be at least 1")
    if not 0 <= group.index < group.count:
        raise ConfigError(
            f"--process {group.index} is not one of --processes {group.count}; they are numbered "
            f"from 0 to {group.count - 1}"
        )
    host, colon, port = group.coordinator.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(
            f"--coordinator {group.coordinator!r} is not HOST:PORT; name the host of process 0 and "
            "a free port there, as in 10.0.0.1:8476"
        )
    return None if group.count == 1 else group


def _from_launcher(environ: Mapping[str, str]) -> Group | None:
    """From JAX's own variables, or from those that torchrun, Ray Train and Kubeflow set."""
    if address := environ.get("JAX_COORDINATOR_ADDRESS"):
        index = next(
            (k for k in ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX", "SLURM_PROCID") if k in environ),
            "JAX_PROCESS_ID",
        )
        count = "JAX_NUM_PROCESSES" if "JAX_NUM_PROCESSES" in environ else "SLURM_NTASKS"
        return Group(
            address,
            _number(environ, count),
            _number(environ, index),
            source="the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
        )
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
    if all(environ.get(name) for name in names):
        several = (_number(environ, "LOCAL_WORLD_SIZE") or 1) > 1
        local = _number(environ, "LOCAL_RANK") if several else None
        return Group(
            f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}",
            _number(environ, "WORLD_SIZE"),
            _number(environ, "RANK"),
            _own_device(environ, local),
            source=f"the variables {', '.join(names)}",
        )
    return None


def _from_slurm(environ: Mapping[str, str]) -> Group | None:
    """From the variables of `srun`; a batch script outside of it is no step and is alone."""
    nodes = environ.get("SLURM_STEP_NODELIST")
    if not nodes or "SLURM_PROCID" not in environ:
        return None
    count = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
    if not count or count == 1:
        return None
    # Jobs on one node at a time get ports of their own.
    port = environ.get("JAX_COORDINATOR_PORT") or 61440 + (
        (_number(environ, "SLURM_JOB_ID") or 0) % 4096
    )
    several = count > (_number(environ, "SLURM_STEP_NUM_NODES") or count)
    local = _number(environ, "SLURM_LOCALID") if several else None
    return Group(
        f"{first_host(nodes)}:{port}",
        count,
        _number(environ, "SLURM_PROCID"),
        _own_device(environ, local),
        source="SLURM",
    )


def first_host(nodes: str) -> str:
    """The first of a SLURM node list: "a[03-05,9],b" → "a03", "rack-1,x" → "rack-1"."""
    head = nodes.split(",", 1)[0]
    prefix, bracket, inside = head.partition("[")
    if not bracket:
        return head
    suffix = nodes.partition("]")[2].split(",", 1)[0]
    return prefix + inside.rstrip("]").split("-", 1)[0] + suffix


def _own_device(environ: Mapping[str, str], local: int | None) -> tuple[int, ...] | None:
    """One accelerator for each process of a host, unless the launcher shows it only its own."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    alone = visible is not None and "," not in visible
    return None if local is None or alone else (local,)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError as e:
        raise ConfigError(f"the variable {name} is {text!r}, not a number; {_REMEDY}") from e


def _on_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several TPU hosts, as far as variables and metadata say."""
    if environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or (_number(environ, "MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    devices = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    if hosts or not devices or environ.get("TPU_SKIP_MDS_QUERY"):
        return False
    return "," in _metadata("worker-network-endpoints") or "MEGASCALE" in _metadata("tpu-env")


def _metadata(key: str) -> str:
    """An attribute of a Google Cloud machine; empty where there is none."""
    request = urllib.request.Request(_METADATA + key, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError):
        return ""
