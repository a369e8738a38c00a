"""`fmjax plan`."""

import dataclasses
from pathlib import Path
from typing import Literal

from fmjax.recipes.options import Attention, Method, Remat


@dataclasses.dataclass(frozen=True)
class PlanStep:
    """Compile a training step for chips that are not there: memory, time and what bounds it.

    The real step is compiled, and nothing is allocated. Needs `pip install libtpu` for TPUs and
    `pip install "jax[cuda12]"` for GPUs, on any machine.

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
      quantize: Frozen weights in 4 bits (nf4) or 8 (int8); qlora takes nf4 unless told otherwise.
      rank: Rank of low-rank matrices.
      accumulate: Parts that a batch is cut into.
      attention: The kernel, as in `fmjax train`.
      matmul: int8 for products of 8-bit integers in dense layers, as in `fmjax train`.
      microbatches: Parts of a batch that pass through the stages of a --mesh with a stage axis, as
        in `fmjax train`.
      unpacked: Rows hold one document each; packed rows, which are the default, hold several.
      override: Changes of the architecture, such as num_hidden_layers=8.
      json: File to write all figures to.
      decode: Plan a token of decoding for every row, whose caches have as many slots as --seq.
      search: Try meshes, rule lists, less recomputation and other batches, and rank what fits by
        estimated speed. Each takes a compilation.
    """

    model: str
    topology: str
    batch: int
    seq: int
    method: Method = "full"
    remat: Remat = "full"
    mesh: str = ""
    rules: str = ""
    adapter_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    quantize: Literal["none", "nf4", "int8"] = "none"
    rank: int = 8
    accumulate: int = 1
    attention: Attention = "auto"
    matmul: Literal["default", "int8"] = "default"
    microbatches: int | None = None
    unpacked: bool = False
    override: tuple[str, ...] = ()
    json: Path | None = None
    decode: bool = False
    search: bool = False

    def run(self) -> None:
        from fmjax.plan.environment import prepare

        prepare()
        from fmjax.core.errors import ConfigError
        from fmjax.plan.result import write
        from fmjax.plan.search import to_json
        from fmjax.recipes.options import Adaptation, Optimization
        from fmjax.recipes.plan import Case, plan_case, search_cases

        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise ConfigError(f"--json {self.json}: there is no such directory; make it first")
        case = Case(
            self.model,
            self.topology,
            self.batch,
            self.seq,
            Adaptation(
                method=self.method,
                rank=self.rank,
                moments=self.moments,
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
        )
        if self.search:
            ranked = search_cases(case, lambda tried: print(tried.line(), flush=True))
            best = ranked[0]
            print("\nbest first:", *(f"  {tried.line()}" for tried in ranked), sep="\n")
            print(f"\n{best.plan}" if best.fits else "\nnothing fits; take more chips")
            text = to_json(ranked)
        else:
            result = plan_case(case)
            print(result)
            text = result.to_json()
        if self.json is not None:
            write(self.json, text)
            print(f"figures: {self.json}")
