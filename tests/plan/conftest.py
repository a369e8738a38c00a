"""The TPU compiler, where it is installed, for one process at a time."""

import fcntl
import importlib.util
import os
import tempfile
from collections.abc import Iterator

import pytest

from fmjax.plan import prepare


@pytest.fixture(scope="module")
def libtpu() -> Iterator[None]:
    """While a test holds it, no other process of these tests compiles for TPUs."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    prepare()
    path = os.path.join(tempfile.gettempdir(), f"fmjax-test-libtpu-{os.getuid()}.lock")
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
