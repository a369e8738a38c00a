"""`fmjax merge`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Merge:
    """Fold an adapter into its base model and write the sum as a model directory.

    The result needs neither fmjax nor PEFT: transformers loads it as any model.

    Attributes:
      model: Directory of the base model.
      adapter: Directory of the adapter, in PEFT's format.
      out: Directory to write; all of it or nothing.
      dtype: Of the weights written; keep takes the base model's.
    """

    model: Path
    adapter: Path
    out: Path
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"

    def run(self) -> None:
        import fmjax
        from fmjax import peft
        from fmjax.recipes.models import tokenizer_beside

        model, params = fmjax.from_pretrained(self.model)
        _, adapter = peft.load(self.adapter, model, params)
        merged = peft.merge(model, params, adapter)
        dtype = None if self.dtype == "keep" else self.dtype
        # Beside the adapter lies the chat template that it learnt, if it did.
        tokenizer = tokenizer_beside(self.adapter)
        fmjax.save_pretrained(
            self.out, model, merged, tokenizer, dtype=dtype, carry_from=self.model
        )
        print(f"{self.out}: {self.model} with {self.adapter} folded in")
