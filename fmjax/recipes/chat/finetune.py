"""Fine-tuning on conversations: with answers to learn, or with answers to prefer."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from fmjax.recipes.chat.settings import ChatExamples, ChatOptimization, Preference, Samples
from fmjax.recipes.options import Adaptation, Hardware
from fmjax.recipes.tasks.finetune import LEARNING_RATES


@dataclasses.dataclass(frozen=True)
class _FinetuneChat:
    """What both have, and how they run."""

    model: Path
    out: Path
    examples: ChatExamples
    adaptation: Adaptation = Adaptation(method="lora")
    optimization: ChatOptimization = ChatOptimization()
    hardware: Hardware = Hardware()
    shown: Samples = Samples()
    log_every: int = 10
    tensorboard: bool = False

    # Peaks of the learning rate, relative to those of tasks with labels.
    rate_scale: ClassVar[float]

    def run(self) -> bool:
        """Trains, measures and exports.

        Returns:
          Whether the run is complete; False after a SIGTERM, which saved a checkpoint.

        Raises:
          FmjaxError: settings or files that cannot be used; found before anything is written.
        """
        from fmjax.recipes.chat.run import finetune

        return finetune(self) is not None

    @property
    def learning_rate(self) -> float:
        """The peak, as given or by task and method."""
        default = LEARNING_RATES[self.adaptation.method] * self.rate_scale
        return self.optimization.learning_rate or default

    def steps(self, per_epoch: float) -> int:
        """Updates in all, of so many in an epoch."""
        optimization = self.optimization
        return optimization.steps or max(1, math.ceil(optimization.epochs * per_epoch))

    def eval_every(self, per_epoch: float) -> int:
        """Updates between evaluations."""
        return self.optimization.eval_every or max(1, round(per_epoch))

    def record(self) -> dict[str, Any]:
        """What a checkpoint remembers of the settings and compares when the run goes on."""
        record = dataclasses.asdict(self)
        for name in ("hardware", "log_every", "model", "out", "shown", "tensorboard"):
            record.pop(name)
        return json.loads(json.dumps(record, default=str))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSft(_FinetuneChat):
    """Instruction tuning: teach a model to answer, from conversations.

    The loss is on the assistant's answers only, end of turn included; conversations are packed into
    rows and do not see each other. They are written by the tokenizer's chat template; a tokenizer
    without one gets a plain one, which is saved with the result, for `fmjax generate --chat` and
    for other programs. The run's directory gets `adapter`, which PEFT loads, or `model`, which
    transformers loads; figures (metrics.json), the log (metrics.jsonl) and checkpoints. The same
    command goes on where a stopped run was.

    Attributes:
      model: Directory of the model to start from.
      out: Directory of the run.
      task: sft.
      log_every: Steps between lines of the log.
      tensorboard: Also write TensorBoard event files.
    """

    task: Literal["sft"]

    rate_scale: ClassVar[float] = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneDpo(_FinetuneChat):
    """Direct preference optimisation: teach a model which of two answers is the better.

    The reference is the model with its adapter off; where all weights are trained, its
    log-probabilities are computed once before. Chat templates and results are as with --task sft.

    Attributes:
      model: Directory of the model to start from, best one that already answers.
      out: Directory of the run.
      task: dpo.
      log_every: Steps between lines of the log.
      tensorboard: Also write TensorBoard event files.
    """

    task: Literal["dpo"]
    preference: Preference = Preference()

    rate_scale: ClassVar[float] = 0.02
