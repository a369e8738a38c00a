"""Fine-tuning on a task: one function for all tasks and methods."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

from fmjax.recipes.options import Adaptation, Hardware
from fmjax.recipes.tasks.settings import Examples, TaskOptimization

LEARNING_RATES = {
    "full": 5e-5,
    "lora": 1e-3,
    "rslora": 1e-3,
    "dora": 1e-3,
    "qlora": 1e-3,
    "prefix": 1e-2,
    "prompt": 3e-2,
    "ptuning": 1e-3,
    "ia3": 1e-2,
}
"""Peaks by method, where none is given."""


@dataclasses.dataclass(frozen=True)
class FinetuneTask:
    """Adapt a model to a task: classification, tagging, question answering (qa) or embedding.

    The best state by the task's metric is what counts in the end. The run's directory gets it as
    `model`, which transformers loads (with LoRA also `adapter`, which PEFT loads), its figures
    (metrics.json), pictures (report.html, picture.png), the log (metrics.jsonl) and checkpoints.
    The same command goes on where a stopped run was.

    Attributes:
      model: Directory of the model to start from.
      out: Directory of the run.
      task: What the model is to do.
      pooling: Of embedding: the mean of the tokens' vectors, or that of the first (cls) or last
        token. Without it, what the model's own 1_Pooling says, else mean for encoders and last for
        decoders.
      log_every: Steps between lines of the log.
      tensorboard: Also write TensorBoard event files.
    """

    model: Path
    out: Path
    examples: Examples
    task: Literal["classification", "tagging", "qa", "embedding"]
    adaptation: Adaptation = Adaptation()
    optimization: TaskOptimization = TaskOptimization()
    hardware: Hardware = Hardware()
    pooling: Literal["", "mean", "cls", "last"] = ""
    log_every: int = 10
    tensorboard: bool = False

    def run(self) -> bool:
        """Trains, measures and exports.

        Returns:
          Whether the run is complete; False after a SIGTERM, which saved a checkpoint.

        Raises:
          FmjaxError: settings or files that cannot be used; found before anything is written.
        """
        from fmjax.recipes.tasks.run import TaskRun

        return TaskRun.open(self).run() is not None

    @property
    def learning_rate(self) -> float:
        """The peak, as given or by the method."""
        return self.optimization.learning_rate or LEARNING_RATES[self.adaptation.method]

    def steps(self, examples: int) -> int:
        """Updates in all, over this many examples to train on."""
        optimization = self.optimization
        return optimization.steps or max(
            1, math.ceil(optimization.epochs * examples / optimization.batch_size)
        )

    def eval_every(self, examples: int) -> int:
        """Updates between evaluations."""
        optimization = self.optimization
        return optimization.eval_every or max(1, round(examples / optimization.batch_size))

    def record(self) -> dict[str, Any]:
        """What a checkpoint remembers of the settings and compares when the run goes on."""
        record = dataclasses.asdict(self)
        for name in ("hardware", "log_every", "model", "out", "tensorboard"):
            record.pop(name)
        return json.loads(json.dumps(record, default=str))
