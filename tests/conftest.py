"""Eight virtual CPU devices, exact matmuls and a persistent compilation cache for every test."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for `quick`
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "fmjax-test-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# bitsandbytes would compile small functions for every shape.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def programs_of_a_file_go_with_it() -> Iterator[None]:
    """Every compiled program takes memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()
