"""Where metrics are written to."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """Receives the metrics of a run, in order of steps."""

    def resume(self, step: int) -> None:
        """Called once before the first `write`: the run goes on after `step` (0: from the start).

        What was written for later steps belongs to a past that did not happen.
        """

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlLogger:
    """One JSON object a line: {"step": 10, "loss": 3.2, …}. Not-finite values are null."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: Any = None

    def resume(self, step: int) -> None:
        """Drops lines beyond `step`, and a line that a killed run left unfinished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            part = self.path.with_name(self.path.name + ".part")
            part.write_text("".join(kept))
            os.replace(part, self.path)
        self._file = self.path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoardLogger:
    """Scalars as TensorBoard event files, through tensorboardX."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._writer: Any = None

    def resume(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        # Tells TensorBoard to drop events of later steps in older files.
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(self.directory), purge_step=purge, write_to_disk=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
