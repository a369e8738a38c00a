"""`fmjax plan`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fmjax.recipes.options import Adaptation, Attention, Method, Offload, Optimization, Remat
from fmjax.recipes.plan_cases import Case


@dataclasses.dataclass(frozen=True)
class PlanStep:
    """Compile a training step for chips that are not there: memory, time and what bounds it.

    The real step is compiled as far as its memory and its schedule go, and nothing is allocated.
    Needs `pip install libtpu` for TPUs and `pip install "jax[cuda12]"` for GPUs, on any machine.
    A step that does not fit is an answer (exit code 0) and says what to change.

    Attributes:
      model: A published size such as llama-7b, a config.json, or a model directory, of which only
        the config is read.
      topology: Chips: v5p:2x2x4 (a grid), v5e:8 (a number), v5p:1 (one chip), h100:8.
      batch: Rows of the global batch, over all chips and accumulated parts together.
      seq: Tokens in a row.
      method: What is trained, as in `fmjax finetune`; full also serves pretraining.
      remat: What the backward pass recomputes, as in `fmjax train`.
      mesh: Chips by axis, such as fsdp=8,tensor=2; one may be -1 (what is left). Without it the
        layout is what a run would choose; with --rules alone all chips are on fsdp.
      rules: A ready list of sharding rules and pairs in front of it, such as
        fsdp_tensor,embed=none.
      adapter_dtype: Of what is trained beside frozen weights: auto is bfloat16 for qlora, else
        float32.
      moments: Of AdamW.
      offload: optimizer keeps the optimizer's state in the host's memory, as in `fmjax train`.
      ema: Decay of an average of the trained weights; 0 for none.
      freeze: Regular expressions of parameter paths that method full leaves as they are.
      targets: Layers that low-rank matrices or ia3's factors go to, as in `fmjax finetune`.
      quantize: Frozen weights in 4 bits (nf4) or 8 (int8); qlora takes nf4 unless told otherwise.
      rank: Rank of low-rank matrices.
      accumulate: Parts that a batch is cut into.
      attention: The kernel, as in `fmjax train`.
      matmul: int8 for products of 8-bit integers in dense layers, as in `fmjax train`.
      microbatches: Parts of a batch that pass through the stages of a --mesh with a stage axis, as
        in `fmjax train`.
      unpacked: Rows hold one document each; packed rows, which are the default, hold several.
      override: Changes of the architecture, such as num_hidden_layers=8.
      codegen: Have the machine code written too, which takes TPUs' compiler a minute and changes no
        figure, but proves that the kernels compile.
      json: File to write all figures to.
      decode: Plan a token of decoding for every row, whose caches have as many slots as --seq.
      search: Try meshes, rule lists, less recomputation and other batches, and rank what fits by
        estimated speed. Each takes a compilation of some seconds.
    """

    model: str
    topology: str
    batch: Annotated[int, tyro.conf.arg(aliases=["--batch-size"])]
    seq: Annotated[int, tyro.conf.arg(aliases=["--sequence-length"])]
    method: Method = "full"
    remat: Remat = "full"
    mesh: str = ""
    rules: str = ""
    adapter_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    offload: Offload = "none"
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    quantize: Literal["none", "nf4", "int8"] = "none"
    rank: int = 8
    accumulate: int = 1
    attention: Attention = "auto"
    matmul: Literal["default", "int8"] = "default"
    microbatches: int | None = None
    unpacked: bool = False
    override: tuple[str, ...] = ()
    codegen: bool = False
    json: Path | None = None
    decode: bool = False
    search: bool = False

    def run(self) -> None:
        from fmjax.plan.environment import prepare

        prepare()
        from fmjax.core.errors import ConfigError
        from fmjax.plan.result import write

        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise ConfigError(f"--json {self.json}: there is no such directory; make it first")
        said, text = self._search() if self.search else self._one()
        print(said)
        if self.json is not None:
            write(self.json, text)
            print(f"figures: {self.json}")

    def _one(self) -> tuple[str, str]:
        """What to print, and the JSON of the plan."""
        if self.codegen:
            from fmjax.recipes.plan import plan_case as planned
        else:
            from fmjax.recipes.plan_apart import plan_apart as planned
        result = planned(self._case())
        return str(result), result.to_json()

    def _search(self) -> tuple[str, str]:
        """Likewise of all that was tried."""
        from fmjax.plan.search import to_json
        from fmjax.recipes.plan import search_cases

        ranked = search_cases(self._case(), lambda tried: print(tried.line(), flush=True))
        lines = ["", "best first:", *(f"  {tried.line()}" for tried in ranked), ""]
        best = ranked[0].plan
        if best.fits:
            lines.append(str(best))
        else:
            lines += ["nothing fits; what would make the smallest smaller:"]
            lines += [f"  {line}" for line in best.advice]
        return "\n".join(lines), to_json(ranked)

    def _case(self) -> Case:
        return Case(
            self.model,
            self.topology,
            self.batch,
            self.seq,
            Adaptation(
                method=self.method,
                rank=self.rank,
                targets=self.targets,
                moments=self.moments,
                ema=self.ema,
                freeze=self.freeze,
                adapter_dtype=self.adapter_dtype,
                quantize=self.quantize,
            ),
            Optimization(accumulate=self.accumulate),
            self.remat,
            self.attention,
            self.mesh,
            self.rules,
            not self.unpacked,
            self.override,
            self.decode,
            self.matmul,
            self.microbatches,
            self.offload,
        )
