"""Adapting a language model to text."""

import dataclasses
from pathlib import Path
from typing import Literal

from fmjax.recipes.options import Cadence, Data, Hardware, Optimization


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Adapt a model to text, or with --task to a task: with LoRA, or all of its weights.

    With --task classification, tagging, qa or embedding it learns from labelled examples; see
    `fmjax finetune --task classification --help`. Without, it goes on predicting the next token.

    The run's directory gets checkpoints, a log (metrics.jsonl) and in the end `adapter`, which
    PEFT loads, or `model`, which transformers loads. The same command goes on where a stopped run
    was.

    Attributes:
      model: Directory of the base model.
      out: Directory of the run.
      method: lora trains small low-rank matrices beside frozen weights; full trains all weights.
      rank: Rank of LoRA's matrices.
      alpha: LoRA's scale is alpha / rank.
      targets: Layers that LoRA touches: names such as q_proj v_proj, or all-linear.
      lora_dropout: Dropout on the input of LoRA's matrices, 0 to 1.
    """

    model: Path
    out: Path
    data: Data
    method: Literal["lora", "full"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("all-linear",)
    lora_dropout: float = 0.0
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
        from fmjax import peft
        from fmjax.recipes.models import compute_dtype, parse_mesh, resolve_directory
        from fmjax.recipes.training import Run, train

        start = resolve_directory(self.model)
        mesh = parse_mesh(self.hardware.mesh)
        dtype = compute_dtype(self.hardware.dtype)
        lora = self.method == "lora"
        spec = self._spec() if lora else None
        run = Run.open(self, start.config, start.tokenizer, mesh)
        model, params = fmjax.from_pretrained(
            self.model,
            dtype=dtype,
            # Frozen weights need no more precision than the computation; trained ones do.
            param_dtype=dtype if lora else "float32",
            remat=self.hardware.remat,
            mesh=mesh,
        )
        variables = {"params": params}
        if spec is not None:
            key = jax.random.key(self.optimization.seed)
            variables["adapter"] = peft.init(key, spec, model, params)
        state = train(run, model, variables)
        if state is None:
            return False
        if spec is None:
            target = self.out / "model"
            fmjax.save_pretrained(target, model, state.variables["params"], carry_from=self.model)
            print(f"model: {target}")
            print(f'next: fmjax generate --model {target} --prompt "…" --temperature 0.8')
        else:
            target = self.out / "adapter"
            adapter = state.variables["adapter"]
            peft.save(target, spec, adapter, model, base=str(self.model), params=params)
            print(f"adapter: {target}")
            pair = f"--model {self.model} --adapter {target}"
            print(f'next: fmjax generate {pair} --prompt "…" --temperature 0.8')
            print(f"      fmjax merge {pair} --out {self.out / 'model'}")
        return True

    def _spec(self):
        from fmjax import peft

        targets = self.targets[0] if self.targets == ("all-linear",) else self.targets
        return peft.LoRA(self.rank, self.alpha, targets, self.lora_dropout)
