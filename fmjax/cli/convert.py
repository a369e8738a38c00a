"""`fmjax convert`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Convert:
    """Rewrite a model directory in another dtype or file size.

    Every tensor is checked against config.json, names become canonical, and the tokenizer comes
    along. One tensor is in memory at a time.

    Attributes:
      model: Directory with config.json and safetensors weights.
      out: Directory to write; all of it or nothing.
      dtype: Of floating tensors; keep leaves each as it is, bit for bit.
      max_shard_gb: Size of a weights file at most, in GB (10^9 bytes).
    """

    model: Path
    out: Path
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    max_shard_gb: float = 5.0

    def run(self) -> None:
        from fmjax import hub
        from fmjax.cli.console import size

        dtype = None if self.dtype == "keep" else self.dtype
        done = hub.convert(self.model, self.out, dtype, int(self.max_shard_gb * 1e9))
        print(
            f"{self.out}: {done.tensors} tensors, {done.parameters:,} parameters, "
            f"{size(done.nbytes)} ({done.dtype})"
        )
