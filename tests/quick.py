"""Programs that run a few times: quick to compile, slow to run.

What `conftest.py` sets for the process of the tests; the same for those that a test starts, and for
one `jit` alone.
"""

import importlib.metadata
import os
from collections.abc import Callable

# Newer XLA has nothing but fusion emitters, and no such flag. libtpu has none either.
_LEGACY = importlib.metadata.version("jaxlib").split(".")[:2] in (["0", "9"], ["0", "10"])
FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
LEGACY_FLAGS = FLAGS + " --xla_cpu_use_fusion_emitters=false" * _LEGACY

QUICK: dict[str, object] = {"xla_backend_optimization_level": 0}
if _LEGACY:
    QUICK["xla_cpu_use_fusion_emitters"] = False


def compile_options(original: Callable) -> Callable:
    """JAX's own options of a compilation, which have the emitters that users have once more."""

    def options(*args, backend=None, env_options_overrides=None, **kwargs):
        if _LEGACY and backend is not None and backend.platform == "cpu":
            emitters = {"xla_cpu_use_fusion_emitters": True}
            env_options_overrides = emitters | (env_options_overrides or {})
        return original(
            *args, backend=backend, env_options_overrides=env_options_overrides, **kwargs
        )

    return options


def environ(devices: int | None = None) -> dict[str, str]:
    """For a process that a test starts, which has so many devices, or says so itself."""
    count = f" --xla_force_host_platform_device_count={devices}" if devices else ""
    return os.environ | {"XLA_FLAGS": LEGACY_FLAGS + count}
