"""What `fmjax plan` plans: one step, as plain settings. Importing this module imports no JAX."""

import dataclasses
from typing import Any

from fmjax.recipes.options import Adaptation, Optimization


@dataclasses.dataclass(frozen=True)
class Case:
    """One step to plan.

    Attributes:
      model: a published size, a config.json or a model directory (of which only the config is
        read).
      topology: such as "v5p:2x2x4".
      batch: B, rows of the global batch.
      seq: T, tokens of a row.
      adaptation: the method and its settings.
      optimization: of which only `accumulate` changes what a step takes.
      remat, attention, matmul, microbatches: of `fmjax.Execution`; decoding has only `attention`.
      offload: "none", or "optimizer" for its state in the host's memory.
      mesh: sizes by axis, such as "fsdp=8,tensor=2".
      rules: a ready list, and pairs in front of it. Without both a layout is chosen, as runs do.
      packed: rows hold several documents, as in pretraining; else one document each.
      override: "field=value" changes of the architecture.
      decode: plan a token of decoding instead of a training step; T slots of cache.
    """

    model: str
    topology: str
    batch: int
    seq: int
    adaptation: Adaptation = Adaptation()
    optimization: Optimization = Optimization()
    remat: str = "full"
    attention: str = "auto"
    mesh: str = ""
    rules: str = ""
    packed: bool = True
    override: tuple[str, ...] = ()
    decode: bool = False
    matmul: str = "default"
    microbatches: int | None = None
    offload: str = "none"

    def settings(self) -> dict[str, Any]:
        """What a plan calls it; what is left at its default is left out."""
        a, o = self.adaptation, self.optimization
        named = {
            "model": self.model,
            "method": a.method,
            "batch": self.batch,
            "seq": self.seq,
            "remat": self.remat,
            "attention": self.attention,
            "matmul": "" if self.matmul == "default" else self.matmul,
            "microbatches": self.microbatches or "",
            "moments": a.moments,
            "offload": "" if self.offload == "none" else self.offload,
            "ema": a.ema or "",
            "freeze": " ".join(a.freeze),
            "adapter_dtype": "" if a.adapter_dtype == "auto" else a.adapter_dtype,
            "quantize": "" if a.precision == "none" else a.precision,
            "rank": a.rank if a.method in ("lora", "rslora", "dora", "qlora") else "",
            "targets": " ".join(a.targets),
            "accumulate": o.accumulate if o.accumulate > 1 else "",
            "mesh": self.mesh,
            "rules": self.rules,
            "override": " ".join(self.override),
        }
        if self.decode:
            named = (
                {"step": "decode"} | named | dict.fromkeys(("remat", "moments", "accumulate"), "")
            )
        return {name: value for name, value in named.items() if value != ""}
