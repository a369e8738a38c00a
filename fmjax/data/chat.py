"""Chat templates: Jinja programs that come with a checkpoint, so they run sandboxed.

The environment follows Hugging Face's conventions (block trimming, `raise_exception`,
`strftime_now`, a `tojson` that does not escape HTML, loop controls, `{% generation %}` marks).

Which part of a rendered conversation is an answer is told by those marks, or else, where a template
has none, by what each answer adds to the rendering of the messages before it.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from fmjax.core.errors import TokenizerError

ASSISTANT = "assistant"
Span = tuple[int, int]  # first character, and one past the last

# What stands around the body of `{% generation %}` while a rendering is searched for answers:
# characters that Unicode reserves for such uses within a program.
_MARKS = {"fmjax_answer_begins": "\ufdd0", "fmjax_answer_ends": "\ufdd1"}


@functools.lru_cache(maxsize=32)
def _compile(template: str):
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationMarks(Extension):
        """`{% generation %}…{% endgeneration %}` renders as its body, between marks if wanted."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (
                nodes.Output([nodes.Name(name, "load")]).set_lineno(line) for name in _MARKS
            )
            return [begin, *body, end]

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMarks, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return env.from_string(template)


def _plain(value: Any) -> Any:
    """Only JSON types reach a template: methods of richer objects may not be safe to call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(v) for v in value]
    raise TokenizerError(
        f"a chat message holds a {type(value).__name__}; use only strings, numbers, lists and dicts"
    )


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """The prompt of a conversation.

    Args:
      template: Jinja source.
      messages: `{"role", "content", …}` in order; None values are dropped, as if not given.
      add_generation_prompt: ends with the header of the assistant's next turn.
      **variables: whatever else the template reads (`tools`, `bos_token`, …).

    Raises:
      TokenizerError: the template is broken, refuses these messages, or tries what the sandbox
        forbids.
    """
    import jinja2

    if not messages:
        raise TokenizerError("an empty conversation; give at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise TokenizerError(
                f'message {i} of the conversation is not a dict with a "role": {message!r:.60}'
            )
    messages = [{k: _plain(v) for k, v in m.items() if v is not None} for m in messages]
    try:
        return _compile(template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            **{k: _plain(v) for k, v in variables.items()},
        )
    except jinja2.exceptions.SecurityError as e:
        raise TokenizerError(f"the chat template tried what the sandbox forbids: {e}") from e
    except jinja2.exceptions.TemplateSyntaxError as e:
        raise TokenizerError(f"the chat template, line {e.lineno}: {e.message}; fix it") from e
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, OverflowError) as e:
        raise TokenizerError(f"the chat template refuses these messages: {e}") from e


def answers(
    template: str, messages: Sequence[Mapping[str, Any]], **variables: Any
) -> tuple[str, list[Span]]:
    """A conversation, and where in it the assistant's answers are, each with its end-of-turn mark.

    A template with `{% generation %}` blocks says so itself. Otherwise an answer is all that its
    message adds to the messages before it and the header of the assistant's turn.

    Args:
      template: Jinja source.
      messages: `{"role", "content", …}` in order.
      **variables: whatever else the template reads.

    Returns:
      The text, and a span for each message of the assistant, in order.

    Raises:
      TokenizerError: as `render`; an answer that cannot be told from the rest.
    """
    text = render(template, messages, **variables)
    if any(mark in text for mark in _MARKS.values()):
        raise TokenizerError("a message holds U+FDD0 or U+FDD1, which are no characters; remove it")
    begin, end = _MARKS.values()
    marked = render(template, messages, **variables, **_MARKS)
    spans = []
    if begin in marked:
        start = 0
        for piece in marked.split(begin):
            body, closed, rest = piece.partition(end)
            if closed:
                spans.append((start, start + len(body)))
            start += len(body) + len(rest)
        if marked.replace(begin, "").replace(end, "") != text:
            raise TokenizerError(
                "the chat template changes the text of its {% generation %} blocks afterwards; "
                "apply filters within the blocks"
            )
    else:
        spans = _added(template, messages, text, variables)
    number = sum(message["role"] == ASSISTANT for message in messages)
    if len(spans) != number:
        raise TokenizerError(
            f"the chat template has {len(spans)} {{% generation %}} blocks for {number} messages "
            "of the assistant; put one around each of them, its end-of-turn token included"
        )
    return text, spans


def _added(
    template: str, messages: Sequence[Mapping[str, Any]], text: str, variables: Mapping[str, Any]
) -> list[Span]:
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        if not i:
            raise TokenizerError(
                "the conversation begins with an answer, and the chat template does not say where "
                "answers are; begin with a user's message, or add {% generation %} blocks to it"
            )
        before = render(template, messages[:i], add_generation_prompt=True, **variables)
        through = render(template, messages[: i + 1], **variables)
        if not (through.startswith(before) and text.startswith(through)):
            raise TokenizerError(
                f"message {i}: the chat template writes earlier messages differently once more "
                "follow, so answers cannot be found; put {% generation %} and {% endgeneration %} "
                "around the assistant's messages in the template"
            )
        spans.append((len(before), len(through)))
    return spans
