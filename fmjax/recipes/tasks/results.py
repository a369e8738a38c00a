"""What a fine-tuning run shows at its end: figures, pictures, and what to do next."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from fmjax import report as html
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.task import Measured


def write_results(settings: FinetuneTask, measured: Measured, metric: str, outcome: Any) -> None:
    """metrics.json, report.html and its pictures, and the same in short on the terminal."""
    out = Path(settings.out)
    content = {
        "task": settings.task,
        "best_step": outcome.best_step,
        "metrics": measured.metrics,
        "intervals": {name: list(pair) for name, pair in measured.intervals.items()},
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
    }
    (out / "metrics.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, value in measured.metrics.items():
        print(name, value)
