"""Adapting a language model to text."""

import dataclasses
from pathlib import Path

from fmjax.recipes.options import Adaptation, Cadence, Data, Hardware, Optimization


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Adapt a model to text, or with --task to a task: all of its weights, or an adapter.

    With --task classification, tagging, qa or embedding it learns from labelled examples, with
    --task sft from conversations, with --task dpo from preferences; see `fmjax finetune --task sft
    --help`. Without, it goes on predicting the next token.

    The run's directory gets checkpoints, a log (metrics.jsonl) and in the end `adapter`, which
    PEFT loads, or `model`, which transformers loads. The same command goes on where a stopped run
    was.

    Attributes:
      model: Directory of the base model.
      out: Directory of the run.
    """

    model: Path
    out: Path
    data: Data
    adaptation: Adaptation = Adaptation(method="lora")
    optimization: Optimization = Optimization()
    hardware: Hardware = Hardware()
    cadence: Cadence = Cadence()

    def run(self) -> bool:
        """Trains and exports.

        Returns:
          Whether the run is complete; False after a SIGTERM, which saved a checkpoint.

        Raises:
          FmjaxError: settings or files that cannot be used; found before anything is written.
        """
        from fmjax.recipes.adaptation import open_adapted
        from fmjax.recipes.models import resolve_directory
        from fmjax.recipes.training import Run, train

        self.adaptation.check()
        start = resolve_directory(self.model)
        run = Run.open(self, start.config, start.tokenizer)
        adapted = open_adapted(
            self.adaptation,
            self.model,
            self.hardware,
            run.layout,
            self.optimization.seed,
            tokenizer=start.tokenizer,
        )
        state = train(run, adapted)
        if state is None:
            return False
        target = adapted.save(self.out, adapted.counted(state).variables, self.model)
        print(f"{target.name}: {target}")
        if adapted.spec is None:
            print(f'next: fmjax generate --model {target} --prompt "…" --temperature 0.8')
            return True
        prompt = '--prompt "…" --temperature 0.8'
        print("next:", "\n      ".join(adapted.next_steps(self.model, target, self.out, prompt)))
        return True
