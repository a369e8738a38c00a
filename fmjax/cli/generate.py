"""`fmjax generate`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue prompts with a model, with or without an adapter.

    One prompt streams to the terminal; several are decoded together. What is not given is as the
    model's generation_config.json says, and greedy if it says nothing.

    Attributes:
      model: Model directory.
      prompt: Texts to continue. Without any, standard input is one prompt.
      adapter: Directory of an adapter in PEFT's format.
      max_new_tokens: Tokens of a continuation at most; 128 where the model does not say either.
      temperature: 0 takes the most probable token; 1 samples from the model's own distribution.
      top_k: Sample from the k most probable tokens; 0 for all.
      top_p: Sample from the most probable tokens up to this total, 0 to 1.
      min_p: Drop tokens less probable than this share of the top one, 0 to 1.
      repetition_penalty: Above 1 makes tokens that have appeared less likely.
      stop: Strings that end a continuation.
      samples: Continuations of each prompt; they differ only when sampling.
      seed: The same seed gives the same text.
      chat: The prompt is a user's message: apply the tokenizer's chat template.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
      quantize: Read the weights in 4 bits (nf4) or 8 (int8), as an adapter of --method qlora wants
        them.
      json: Print one JSON object for each continuation, as lines; does not stream.
    """

    model: Path
    prompt: tuple[str, ...] = ()
    adapter: Path | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    samples: int = 1
    seed: int = 0
    chat: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal["none", "nf4", "int8"] = "none"
    json: bool = False

    def run(self) -> None:
        import jax

        from fmjax.core.errors import ConfigError
        from fmjax.generate import generate, stream
        from fmjax.recipes.models import open_model

        if self.samples < 1:
            raise ConfigError(f"--samples {self.samples} must be at least 1")
        prompts = self.prompt or (sys.stdin.read(),)
        model, variables, tokenizer = open_model(
            self.model, self.adapter, dtype=self.dtype, quantize=self.quantize
        )
        ids = [self._encode(tokenizer, prompt) for prompt in prompts]
        key = jax.random.key(self.seed)
        settings = {"rng": key, "tokenizer": tokenizer, **self._settings()}
        if len(prompts) * self.samples == 1 and not self.json:
            if not self.chat:
                print(prompts[0], end="", flush=True)
            for piece in stream(model, variables, ids[0], **settings):
                print(piece, end="", flush=True)
            print()
            return
        rows = [row for row in ids for _ in range(self.samples)]
        texts = generate(model, variables, rows, **settings).texts
        repeated = [prompt for prompt in prompts for _ in range(self.samples)]
        for i, (prompt, text) in enumerate(zip(repeated, texts, strict=True)):
            if self.json:
                print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
            else:
                print(("\n" if i else "") + ("" if self.chat else prompt) + text)

    def _encode(self, tokenizer: Any, prompt: str) -> list[int]:
        if not self.chat:
            return tokenizer.encode(prompt)
        messages = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True)

    def _settings(self) -> dict[str, Any]:
        """The model's own settings with those of the command line in their place."""
        from fmjax.generate import GenerationConfig

        own = GenerationConfig.from_dir(self.model).arguments()
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        own["sampling"] = dataclasses.replace(own["sampling"], **given)
        if self.max_new_tokens is not None:
            own["max_new_tokens"] = self.max_new_tokens
        if self.stop:
            own["stop"] = self.stop
        return own
