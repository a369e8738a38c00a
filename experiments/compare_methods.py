"""Every method of adaptation on the same model, data and number of updates.

A sentence encoder learns the sentiment of movie reviews (see sentiment.py) in full, with each kind
of LoRA, with weights of 4 bits, with virtual tokens and with learned factors. The table says what
share of the parameters each trains, the memory of a step as the compiler counts it, its speed, and
the accuracy on held-out reviews with its 95 % interval.

- Command: python experiments/compare_methods.py --model DIR   (MiniLM's directory, or another)
- Cost: one epoch a method, 214 steps of 32 sentences; about 20 minutes on 2 CPU cores.
- Figure: with MiniLM accuracy 0.843 in full, 0.830 to 0.834 with LoRA, rsLoRA and DoRA, 0.847 with
  QLoRA on all linear layers, 0.827 with IA3, 0.796 with a prefix, 0.747 with p-tuning, 0.734 with a
  prompt, each ± 0.03; the whole table is in benchmarks/README.md.

A stopped comparison goes on where it was. One method: --methods lora prefix.
"""

import dataclasses
import sys
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.recipes import FinetuneTask
from fmjax.recipes.tasks import Examples, TaskOptimization

# Where a method differs from its defaults. Virtual tokens have their own learning rates.
METHODS = {
    "full": {},
    "lora": {},
    "rslora": {},
    "dora": {},
    "qlora": {"targets": ("all-linear",)},
    "prefix": {},
    "prompt": {},
    "ptuning": {},
    "ia3": {},
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All methods, one after the other.

    Attributes:
      task: Settings that the runs share.
      methods: Methods to run.
    """

    task: FinetuneTask
    methods: tuple[str, ...] = tuple(METHODS)

    def run(self) -> bool:
        """Runs and compares."""
        from fmjax.recipes.tasks.compare import compare, variants

        chosen = {name: METHODS[name] for name in self.methods}
        return compare(variants(self.task, chosen), self.task.out) is not None


COMPARISON = Comparison(
    FinetuneTask(
        model=Path("minilm"),
        out=Path("runs/methods"),
        task="classification",
        examples=Examples(train="movie_reviews:all", max_length=64),
        optimization=TaskOptimization(epochs=1.0, batch_size=32),
    )
)

if __name__ == "__main__":
    sys.exit(experiment(COMPARISON, __doc__))
