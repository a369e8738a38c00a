"""Eight virtual CPU devices, cheap compilation and a persistent cache of it for every test."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for `quick`
from quick import FLAGS, LEGACY_FLAGS, compile_options  # noqa: E402

os.environ["JAX_PLATFORMS"] = "cpu"
DEVICES = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 "
os.environ["XLA_FLAGS"] = DEVICES + LEGACY_FLAGS
# Programs here are small and run a few times: most of a test is compiling them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Devices wait for each other on XLA's threads: with one thread for each device, the pool of jaxlib
# 0.10 runs dry where two collectives of a program do not depend on each other (pipeline stages).
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, in each of pytest's processes
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
from jax._src import compiler  # noqa: E402

jax.devices()  # It has read the flags. libtpu, which ends a process for unknown ones, looks later.
os.environ["XLA_FLAGS"] = DEVICES + FLAGS

OPTIONS = compiler.get_compile_options


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Before all fixtures of a test; programs of the other kind are not for it."""
    cheap = item.get_closest_marker("optimised") is None
    if jax.config.read("jax_disable_most_optimizations") != cheap:
        jax.config.update("jax_disable_most_optimizations", cheap)
        compiler.get_compile_options = OPTIONS if cheap else compile_options(OPTIONS)
        jax.clear_caches()
    return (yield)


@pytest.fixture(autouse=True, scope="module")
def programs_of_a_file_go_with_it() -> Iterator[None]:
    """Every compiled program takes memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()
