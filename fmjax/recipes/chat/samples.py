"""What a model answers to a few held-out prompts."""

from collections.abc import Sequence
from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.generate import GenerationConfig, generate
from fmjax.recipes.chat.settings import Samples


class Answers:
    """The prompts to show, and the answers to them.

    Args:
      prompts: messages before an answer, of the held-out examples.
      wanted: those answers.
      tokenizer: with a chat template.
      model: module.
      directory: of the model, whose generation_config.json may name ends of a turn.
      shown: how many, and how long.

    Raises:
      ConfigError: a number out of range, or a generation_config.json that is broken.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        wanted: Sequence[str],
        tokenizer: Any,
        model: Any,
        directory: Any,
        shown: Samples,
    ):
        if shown.samples < 0 or shown.max_new_tokens < 1:
            raise ConfigError("--samples must be 0 or more, and --max-new-tokens 1 or more")
        room = (model.config.position_limit or 1 << 30) - shown.max_new_tokens
        self._model, self._tokenizer, self._new = model, tokenizer, shown.max_new_tokens
        self._ids: list[list[int]] = []
        self.prompts: list[str] = []
        self.wanted: list[str] = []
        for prompt, answer in zip(prompts, wanted, strict=True):
            if len(self._ids) == shown.samples:
                break
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
            if len(ids) <= room:
                self._ids.append(ids)
                self.prompts.append(prompt[-1]["content"])
                self.wanted.append(answer)
        own = GenerationConfig.from_dir(directory).eos_token_id
        if own is None:
            own = model.config.eos_token_id
        ends = own if isinstance(own, tuple | list) else (own,)
        ends = (*ends, tokenizer.eos_token_id)
        self._eos = tuple(dict.fromkeys(i for i in ends if i is not None))

    def __call__(self, variables: Any) -> list[str]:
        """Greedy answers, one a prompt.

        Args:
          variables: params, and an adapter as the model takes it.
        """
        if not self._ids:
            return []
        texts = generate(
            self._model,
            variables,
            self._ids,
            max_new_tokens=self._new,
            eos_token_id=self._eos,
            tokenizer=self._tokenizer,
        ).texts
        return [text.strip() for text in texts]

    def beside(self, before: Sequence[str], after: Sequence[str]) -> list[dict[str, str]]:
        """One record a prompt."""
        names = ("prompt", "wanted", "before", "after")
        rows = zip(self.prompts, self.wanted, before, after, strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]
