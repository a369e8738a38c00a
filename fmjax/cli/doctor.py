"""`fmjax doctor`."""

import dataclasses
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

PASS, ADVICE, FAIL = "ok", "advice", "problem"
_SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
          "sentencepiece", "tokenizers", "safetensors", "libtpu")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Look at this machine: versions, devices, what works, and what would make it better.

    Exits with 2 if something is broken.
    """

    def run(self) -> None:
        from rich.console import Console

        from fmjax.core.errors import ConfigError

        console = Console(highlight=False)
        failed = []
        for status, text in checks():
            colour = {PASS: "green", ADVICE: "yellow", FAIL: "red"}[status]
            console.print(f"[{colour}]{status:>7}[/]", text, markup=True, soft_wrap=True)
            failed += [text] if status == FAIL else []
        if failed:
            raise ConfigError(f"{len(failed)} of the checks found a problem; see above")


def checks() -> Iterator[tuple[str, str]]:
    """(status, text) of every check, in the order of their cost."""
    yield from _versions()
    yield from _host()
    try:
        yield from _devices()
    except Exception as e:
        yield (
            FAIL,
            (
                f"JAX cannot start: {' '.join(str(e).split())[:300]}; JAX_PLATFORMS="
                f"{os.environ.get('JAX_PLATFORMS', '')!r} now, try JAX_PLATFORMS=cpu"
            ),
        )


def _versions() -> Iterator[tuple[str, str]]:
    from fmjax import __version__

    yield PASS, f"fmjax {__version__}, Python {platform.python_version()}, {platform.platform()}"
    found = [f"{name} {version}" for name in _SHOWN if (version := _version(name))]
    yield PASS, ", ".join(found)
    for requirement in metadata.requires("fmjax") or ():
        if "extra ==" in requirement:
            continue
        name, _, least = re.split(r"[;\s]", requirement)[0].partition(">=")
        version = _version(name)
        if version is None:
            yield FAIL, f"{name} is not installed; run: pip install '{requirement}'"
        elif least and _parts(version) < _parts(least):
            yield FAIL, f"{name} {version} is too old; run: pip install -U '{requirement}'"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def _host() -> Iterator[tuple[str, str]]:
    from fmjax.cli.console import size

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        nbytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f"{size(nbytes)} of memory, "
    free = shutil.disk_usage(Path.cwd()).free
    yield (
        PASS if free > 5e9 else ADVICE,
        f"{cores} CPU cores, {memory}{size(free)} free on the disk of this directory",
    )


def _devices() -> Iterator[tuple[str, str]]:
    import jax
    import jax.numpy as jnp

    from fmjax.cli.console import size

    devices = jax.devices()
    backend = devices[0].platform
    limit = (devices[0].memory_stats() or {}).get("bytes_limit") if backend != "cpu" else None
    yield (
        PASS,
        (
            f"{len(devices)} × {devices[0].device_kind} ({backend}"
            + (f", {size(limit)} each" if limit else "")
            + f"), {jax.process_count()} process(es)"
        ),
    )
    forced = os.environ.get("JAX_PLATFORMS")
    if backend == "cpu" and forced:
        yield ADVICE, f"JAX_PLATFORMS={forced} keeps JAX to the CPU; unset it to look further"
    elif backend == "cpu" and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        yield ADVICE, "there is an NVIDIA GPU that JAX does not see: pip install 'fmjax[cuda]'"
    elif backend == "cpu" and (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()):
        yield ADVICE, "there may be a TPU that JAX does not see: pip install 'fmjax[tpu]'"
    rates = {name: _matmul_rate(jnp.dtype(name)) for name in ("float32", "bfloat16")}
    best = max(rates, key=rates.get)
    figures = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    yield PASS, f"matrix products on one device: {figures}; compute in {best} (--dtype {best})"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        yield (
            ADVICE,
            (
                "set JAX_COMPILATION_CACHE_DIR to a directory, and programs compiled once start at "
                "once the next time"
            ),
        )


def _matmul_rate(dtype) -> float:
    """FLOP/s of a square matrix product, of a size that keeps any device busy for a moment."""
    import jax
    import jax.numpy as jnp

    n = 512 if jax.default_backend() == "cpu" else 4096
    x = jnp.ones((n, n), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    started, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - started < 0.2:
        product(x).block_until_ready()
        count += 1
    return 2 * n**3 * count / (time.perf_counter() - started)
