"""Chat templates: Jinja programs that come with a checkpoint, so they run sandboxed.

The environment follows Hugging Face's conventions (block trimming, `raise_exception`,
`strftime_now`, a `tojson` that does not escape HTML, loop controls, `{% generation %}` marks).
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from fmjax.core.errors import TokenizerError


@functools.lru_cache(maxsize=32)
def _compile(template: str):
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationMarks(Extension):
        """`{% generation %}…{% endgeneration %}` marks assistant text and renders as its body."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

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
