"""Conversations from the forms in which instruction data are kept."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.chat import ASSISTANT
from fmjax.data.tasks.tables import Origin, Report, Table, check_whole, read_table

Message = Mapping[str, str]
Messages = list[Message]

ROLES = ("system", "user", ASSISTANT, "tool")
_SHAREGPT = {"human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT,
             "bard": ASSISTANT}  # fmt: skip
UNANSWERED = "without an answer of the assistant"
EMPTY = "with an empty message"


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Conversations to learn answers from.

    Attributes:
      messages: of each, `{"role", "content"}` in order; at least one is an answer.
      origin: where each is.
      report: rows read and left out.
    """

    messages: list[Messages]
    origin: Origin
    report: Report

    def __len__(self) -> int:
        return len(self.messages)

    def where(self, i: int) -> str:
        """Such as "train.jsonl, line 12"."""
        return self.origin.where(i)

    def keys(self) -> list[tuple[str, ...]]:
        """What was asked in each conversation, by which duplicates are told."""
        return [tuple(m["content"] for m in ms if m["role"] != ASSISTANT) for ms in self.messages]

    def select(self, indices: Sequence[int]) -> "Conversations":
        """These conversations, in this order, with a report of their own; see `leave_out`."""
        chosen = [self.messages[i] for i in indices]
        return Conversations(chosen, self.origin.select(indices), Report(len(indices)))


def read_conversations(name: str | Path) -> Conversations:
    """Conversations from whatever `read_table` reads, each row in one of these forms:

    - `{"messages": [{"role", "content"}, …]}`, roles system, user, assistant and tool;
    - `{"conversations": [{"from", "value"}, …]}` (ShareGPT's), from human, gpt, system, …;
    - `{"prompt", "completion"}`, texts or lists of messages;
    - `{"instruction", "input", "output"}` (Alpaca's), where the input may be empty or absent.

    Rows with an empty message, and conversations without an answer, are left out and counted.

    Raises:
      DataError: as `read_table`; a row in no such form, a message without role or text, an unknown
        role, or no conversation at all. Names file, line and remedy.
    """
    table = read_table(name)
    found: list[Messages] = []
    kept: list[int] = []
    dropped = {EMPTY: 0, UNANSWERED: 0}
    for i in range(len(table)):
        messages = _conversation(table, i)
        if reason := reason_to_drop(messages):
            dropped[reason] += 1
            continue
        found.append(messages)
        kept.append(i)
    report = table.report.and_dropped(dropped)
    if not found:
        raise DataError(
            f"{name}: no conversation is left ({report}); give at least one with an answer"
        )
    return Conversations(found, table.origin.select(kept), report)


def reason_to_drop(messages: Messages) -> str | None:
    """Why nothing can be learnt from a conversation."""
    if not all(message["content"].strip() for message in messages):
        return EMPTY
    return None if any(m["role"] == ASSISTANT for m in messages) else UNANSWERED


def _conversation(table: Table, i: int) -> Messages:
    row, where = table.rows[i], table.where(i)
    if "messages" in row:
        return messages_of(row["messages"], where, "messages")
    if "conversations" in row:
        return messages_of(row["conversations"], where, "conversations")
    if "prompt" in row and "completion" in row:
        return [
            *turns(row["prompt"], where, "prompt", "user"),
            *turns(row["completion"], where, "completion", ASSISTANT),
        ]
    if "instruction" in row and "output" in row:
        instruction, output = (text_of(row[k], where, k) for k in ("instruction", "output"))
        more = row.get("input") or ""
        request = "\n\n".join(filter(None, (instruction, text_of(more, where, "input"))))
        return [
            {"role": "user", "content": request},
            {"role": ASSISTANT, "content": output},
        ]
    raise DataError(
        f"{where}: no conversation among the fields {', '.join(row) or 'none'}; write messages, "
        "conversations, prompt and completion, or instruction and output"
    )


def turns(value: Any, where: str, field: str, role: str) -> Messages:
    """A field that is a text, one message of `role`, or a list of messages."""
    if isinstance(value, list):
        return messages_of(value, where, field)
    return [{"role": role, "content": text_of(value, where, field)}]


def messages_of(value: Any, where: str, field: str) -> Messages:
    """A list of messages, each with "role" and "content", or with "from" and "value".

    Raises:
      DataError: something else; names the place and the message.
    """
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else f"a {type(value).__name__}"
        raise DataError(
            f'{where}: "{field}" holds {what}; write a list of messages '
            '{"role": "user", "content": "…"}'
        )
    return [
        _message(message, f'{where}, "{field}", message {n}') for n, message in enumerate(value, 1)
    ]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f'{where}: not an object; write {{"role": "user", "content": "…"}}')
    role_field, text_field = ("from", "value") if "from" in message else ("role", "content")
    for needed in (role_field, text_field):
        if needed not in message:
            raise DataError(
                f'{where}: no "{needed}"; it has {", ".join(message) or "nothing"}; write '
                f'{{"{role_field}": …, "{text_field}": …}}'
            )
    role = message[role_field]
    role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise DataError(
            f"{where}: the {role_field} is {role!r:.40}; use one of "
            f"{', '.join((*_SHAREGPT, *ROLES) if role_field == 'from' else ROLES)}"
        )
    return {"role": role, "content": text_of(message[text_field], where, text_field)}


def text_of(value: Any, where: str, field: str) -> str:
    """A text, or the joined text parts of a message that is a list of parts.

    Raises:
      DataError: something else.
    """
    if isinstance(value, str):
        check_whole(value, where, field)
        return value
    if isinstance(value, list) and all(
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        for part in value
    ):
        return text_of("".join(part["text"] for part in value), where, field)
    raise DataError(
        f'{where}: "{field}" holds {"null" if value is None else type(value).__name__}, not text; '
        "write a string"
    )
