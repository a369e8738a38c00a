"""Files of a checkpoint: JSON inside it, and what a failed save leaves."""

import base64
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax


class JsonFile:
    """A JSON file inside a checkpoint, as Orbax's `StatefulCheckpointable`.

    Each process writes a file of its own name; loading gives what all of them wrote.

    Attributes:
      values: after loading, those of `process_0.json`, `process_1.json`, … in this order.
    """

    def __init__(self, name: str, value: Any, primary_only: bool = False) -> None:
        self.name, self.value, self.primary_only = name, value, primary_only
        self.values: list[Any] = []

    async def save(self, directory: Any) -> Any:
        text = json.dumps(self.value, indent=1)

        async def write() -> None:
            parent = Path(await directory.await_creation())
            if not self.primary_only or jax.process_index() == 0:
                (parent / self.name).write_text(text)

        return write()

    async def load(self, directory: Any) -> Any:
        async def read() -> None:
            process = 0
            while (path := Path(directory) / data_name(process)).exists():
                self.values.append(json.loads(path.read_text()))
                process += 1

        return read()


def data_name(process: int | None = None) -> str:
    """Of the file of one process, by default this one."""
    return f"process_{jax.process_index() if process is None else process}.json"


def pack(value: Any) -> Any:
    """JSON-able form of a position: bytes become {"base64": …}."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key: pack(v) for key, v in value.items()}
    return [pack(v) for v in value] if isinstance(value, list | tuple) else value


def unpack(value: Any) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, Mapping):
        if set(value) == {"base64"}:
            return base64.b64decode(value["base64"])
        return {key: unpack(v) for key, v in value.items()}
    return [unpack(v) for v in value] if isinstance(value, list) else value


def remove_partial(directory: Path, pattern: str) -> None:
    """Deletes what a failed save left, once its other files are no longer on their way."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Orbax's own join would raise what the thread raised.
            threading.Thread.join(thread, timeout=60)
    for left in directory.glob(pattern):
        shutil.rmtree(left, ignore_errors=True)


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0][:300]
