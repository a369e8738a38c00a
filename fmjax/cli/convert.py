"""`fmjax convert`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Convert:
    """Rewrite a model directory in another dtype or file size, or with packed weights.

    Every tensor is checked against config.json, names become canonical, and the tokenizer comes
    along. One tensor is in memory at a time.

    Attributes:
      model: Directory with config.json and safetensors weights.
      out: Directory to write; all of it or nothing.
      dtype: Of floating tensors; keep leaves each as it is, bit for bit. Any other unpacks packed
        weights.
      quantize: Pack the linear layers: nf4 (4.13 bits a weight), nf4-single (4.5) or int8. What
        comes out loads in fmjax, and in transformers with bitsandbytes.
      max_shard_gb: Size of a weights file at most, in GB (10^9 bytes).
    """

    model: Path
    out: Path
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    quantize: Literal["no", "nf4", "nf4-single", "int8"] = "no"
    max_shard_gb: float = 5.0

    def run(self) -> None:
        from fmjax import hub
        from fmjax.cli.console import size

        dtype = None if self.dtype == "keep" else self.dtype
        quantize = None if self.quantize == "no" else self.quantize
        shard = int(self.max_shard_gb * 1e9)
        done = hub.convert(self.model, self.out, dtype, shard, quantize)
        print(
            f"{self.out}: {done.tensors} tensors, {done.parameters:,} parameters, "
            f"{size(done.nbytes)} ({done.dtype})"
        )
