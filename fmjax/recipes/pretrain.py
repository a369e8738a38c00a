"""Pretraining a language model."""

import dataclasses
from pathlib import Path

from fmjax.recipes.options import Cadence, Data, Hardware, Masking, Optimization


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Pretrain a language model from random weights, or go on from a model directory.

    The run's directory gets checkpoints, a log (metrics.jsonl) and in the end `model`, which
    transformers loads. The same command goes on where a stopped run was. Decoders learn to predict
    the next token; encoders (BERT, RoBERTa) to fill gaps.

    Attributes:
      model: A published size such as gpt2, llama-7b or bert-base, or a config.json: random
        weights. A model directory: its weights.
      out: Directory of the run.
      tokenizer: Directory of the tokenizer, see `fmjax tokenizer`; without it, the one beside the
        model. A published size gets this tokenizer's vocabulary.
      override: Changes of the architecture, such as num_hidden_layers=8 hidden_size=512.
    """

    model: str
    out: Path
    data: Data
    tokenizer: str = ""
    override: tuple[str, ...] = ()
    masking: Masking = Masking()
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
        import jax

        import fmjax
        from fmjax.recipes.adaptation import Adapted
        from fmjax.recipes.models import CAUSAL, compute_dtype, resolve
        from fmjax.recipes.objective import MASKED, is_masked
        from fmjax.recipes.training import Run, train

        start = resolve(self.model, self.tokenizer, self.override, (*CAUSAL, MASKED))
        execution = {
            "dtype": compute_dtype(self.hardware.dtype),
            "param_dtype": "float32",
            "remat": self.hardware.remat,
            "attention": self.hardware.attention,
            "matmul": self.hardware.matmul,
            "microbatches": self.hardware.microbatches,
        }
        run = Run.open(self, start.config, start.tokenizer)
        place = {"mesh": run.layout.mesh, "rules": run.layout.rules}
        if start.directory is None:
            model = fmjax.build(start.config, **execution)
            params = fmjax.init_params(model, jax.random.key(self.optimization.seed), **place)
        else:
            model, params = fmjax.from_pretrained(start.directory, **place, **execution)
        state = train(run, Adapted(model, {"params": params}), drawn=start.directory is None)
        if state is None:
            return False
        target = self.out / "model"
        fmjax.save_pretrained(
            target, model, state.variables["params"], start.tokenizer, carry_from=start.directory
        )
        print(f"model: {target}")
        if is_masked(start.config):
            print(f'next: pipeline("fill-mask", "{target}") in transformers, or a head for a task')
        else:
            print(f'next: fmjax generate --model {target} --prompt "…" --temperature 0.8')
        return True
