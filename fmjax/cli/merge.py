"""`fmjax merge`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Merge:
    """Fold an adapter into its base model and write the sum as a model directory.

    The result needs neither fmjax nor PEFT: transformers loads it as any model. Its logits are
    compared with those of base and adapter.

    Attributes:
      model: Directory of the base model.
      adapter: Directory of the adapter, in PEFT's format.
      out: Directory to write; all of it or nothing.
      dtype: Of the weights written; keep takes the base model's.
      quantize: The packing of the base that the adapter was trained on, as in fine-tuning.
      base_weights: To be said where that base is packed: original adds the adapter to the weights
        as they were before, dequantized to what the packed ones stand for, which it was trained on.
      prompt: Text to compare the logits on; without it a few random tokens.
    """

    model: Path
    adapter: Path
    out: Path
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    quantize: Literal["none", "nf4", "nf4-single", "int8"] = "none"
    base_weights: Literal["original", "dequantized"] | None = None
    prompt: str | None = None

    def run(self) -> None:
        import fmjax
        from fmjax import peft
        from fmjax.recipes.models import tokenizer_beside

        packing = None if self.quantize == "none" else self.quantize
        model, params = fmjax.from_pretrained(self.model, quantize=packing)
        _, adapter = peft.load(self.adapter, model, params)
        base = self._base(params)
        if base == "dequantized":
            merged = peft.merge(model, params, adapter, base="dequantized")
        else:
            original = fmjax.from_pretrained(self.model)[1] if base == "original" else params
            merged = peft.merge(model, original, adapter)
        ids = self._tokens(model)
        dtype = None if self.dtype == "keep" else self.dtype
        # Beside the adapter lies the chat template that it learnt, if it did.
        tokenizer = tokenizer_beside(self.adapter)
        fmjax.save_pretrained(
            self.out, model, merged, tokenizer, dtype=dtype, carry_from=self.model
        )
        print(f"{self.out}: {self.model} with {self.adapter} folded in")
        if model.config.head not in (None, "question-answering"):
            print(peft.merge_report(model, params, adapter, merged, ids))

    def _base(self, params: Any) -> Literal["original", "dequantized"] | None:
        """Which weights of a packed base to merge into; None where the base is not packed."""
        from fmjax.core import tree
        from fmjax.core.errors import ConfigError
        from fmjax.quant import Packed

        packed = any(isinstance(w, Packed) for w in tree.flatten(params).values())
        if not packed:
            if self.base_weights == "dequantized":
                raise ConfigError(
                    f"--base-weights dequantized: the weights of {self.model} are not packed; say "
                    "how they were when the adapter was trained, such as --quantize nf4"
                )
            return None
        if self.base_weights is None:
            raise ConfigError(
                "the base is packed, and merging needs full precision: say --base-weights "
                "dequantized (the weights that the adapter was trained on) or original"
            )
        if self.base_weights == "original" and self.quantize == "none":
            raise ConfigError(
                f"--base-weights original: {self.model} holds packed weights only; give the "
                "directory that they were made from as --model, with --quantize"
            )
        return self.base_weights

    def _tokens(self, model: "nn.Module") -> Any:
        """i32 [B, T] to compare logits on."""
        import numpy as np

        import fmjax
        from fmjax.core.errors import ConfigError

        if self.prompt is None:
            return np.random.default_rng(0).integers(0, model.config.vocab_size, (4, 8))
        ids = fmjax.load_tokenizer(self.model).encode(self.prompt)
        if not ids:
            raise ConfigError("--prompt has no tokens; give some text")
        return np.array([ids], np.int32)
