"""Conversations as token ids, with a mask on the answers: what a model learns to say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.core.errors import TokenizerError
from fmjax.data.chat import ASSISTANT
from fmjax.data.encoding import encode_batch

Messages = Sequence[Mapping[str, Any]]

DEFAULT_TEMPLATE = """\
{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}
{% for message in messages %}
{{ '<|' ~ message['role'] ~ '|>\\n' }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] | trim ~ eos_token }}{% endgeneration %}
{%- else %}
{{ message['content'] | trim }}
{%- endif %}
{{ '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
"""For tokenizers without a chat template. It needs no new token: turns begin with plain text, and
EOS ends the answers, so that generation stops at what the model already knows as the end:

    <|user|>
    Where was Ruth?
    <|assistant|>
    In Bethlehem.</s>
"""

_CHUNK = 1024  # conversations handed to the tokenizer at a time; their offsets are not kept


class ChatTokens(NamedTuple):
    """A conversation as the model reads it.

    Attributes:
      ids: of the tokens.
      answers: 1 on the tokens of answers, their end-of-turn token included, else 0.
      truncated: whether tokens were cut off at the end.
    """

    ids: list[int]
    answers: list[int]
    truncated: bool


def use_default_template(tokenizer: Any) -> bool:
    """Gives a tokenizer without a chat template the default one, which `save` writes beside it.

    Returns:
      Whether it had none.

    Raises:
      TokenizerError: it has no EOS token, with which answers would end.
    """
    if "default" in tokenizer.config.get("chat_template", {}):
        return False
    if not tokenizer.eos_token:
        raise TokenizerError(
            "the tokenizer has neither a chat template nor an EOS token to end answers with; set "
            "eos_token in its tokenizer_config.json, or add a chat_template.jinja"
        )
    named = tokenizer.config.get("chat_template", {})
    tokenizer.config["chat_template"] = {**named, "default": DEFAULT_TEMPLATE}
    return True


def encode_chat(
    tokenizer: Any, messages: Messages, max_length: int | None = None, *, context: int = 0
) -> ChatTokens:
    """One conversation; see `encode_chats`."""
    return encode_chats(tokenizer, [messages], max_length, context=[context])[0]


def encode_chats(
    tokenizer: Any,
    conversations: Sequence[Messages],
    max_length: int | None = None,
    *,
    context: Sequence[int] | None = None,
) -> list[ChatTokens]:
    """Conversations by the tokenizer's chat template, which writes the special tokens itself.

    Where answers are is for the template to say, with `{% generation %}` blocks (the mask is then
    transformers' `return_assistant_tokens_mask`), else it is found as `fmjax.data.chat.answers`
    does. A token that lies partly in an answer belongs to it.

    Args:
      tokenizer: an HFTokenizer or a SentencePieceTokenizer, with a chat template.
      conversations: `{"role", "content"}` in order, of each.
      max_length: tokens beyond are cut off, at the end.
      context: number of first messages of each conversation whose answers do not count.

    Raises:
      TokenizerError: no template, or one that refuses a conversation or hides its answers.
    """
    result = []
    for start in range(0, len(conversations), _CHUNK):
        some = conversations[start : start + _CHUNK]
        rendered = [tokenizer.chat_answers(messages) for messages in some]
        encodings = encode_batch(tokenizer, [text for text, _ in rendered])
        for i, ((_, spans), encoding) in enumerate(zip(rendered, encodings, strict=True)):
            before = some[i][: context[start + i]] if context else ()
            skipped = sum(message["role"] == ASSISTANT for message in before)
            # Without what the tokenizer adds by itself.
            rows = zip(encoding.ids, encoding.offsets, encoding.sequence_ids, strict=True)
            own = [(i, at) for i, at, source in rows if source is not None]
            ids = [i for i, _ in own]
            starts, stops = np.array([at for _, at in own]).reshape(-1, 2).T
            answers = [0] * len(ids)
            for begin, end in spans[skipped:]:
                inside = np.flatnonzero((starts < end) & (stops > begin))
                if inside.size:
                    first, last = int(inside[0]), int(inside[-1])
                    answers[first : last + 1] = [1] * (last + 1 - first)
            limit = len(ids) if max_length is None else max_length
            result.append(ChatTokens(ids[:limit], answers[:limit], len(ids) > limit))
    return result
