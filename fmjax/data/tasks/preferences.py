"""Pairs of answers of which one is preferred: read, encoded, and put into batches."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.chat import ASSISTANT
from fmjax.data.chat_tokens import encode_chats
from fmjax.data.loader import Batch, TextBatches
from fmjax.data.tasks.batches import EvalTaskBatches, eval_task_batches, task_batches
from fmjax.data.tasks.collate import IGNORED, Feature
from fmjax.data.tasks.conversations import EMPTY, Messages, messages_of, turns
from fmjax.data.tasks.tables import Origin, Report, Table, read_table

SIDES = ("chosen", "rejected")
SAME = "whose answers are the same"


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Answers to prompts, a better and a worse one each.

    Attributes:
      prompts: the messages before the answers.
      chosen, rejected: the messages that follow, n of each.
      origin: where each is.
      report: rows read and left out.
    """

    prompts: list[Messages]
    chosen: list[Messages]
    rejected: list[Messages]
    origin: Origin
    report: Report

    def __len__(self) -> int:
        return len(self.prompts)

    def where(self, i: int) -> str:
        """Such as "train.jsonl, line 12"."""
        return self.origin.where(i)

    def keys(self) -> list[tuple[str, ...]]:
        """The prompts, by which duplicates are told."""
        return [tuple(message["content"] for message in prompt) for prompt in self.prompts]

    def select(self, indices: Sequence[int]) -> "Preferences":
        """These pairs, in this order, with a report of their own; see `leave_out`."""
        columns = ([column[i] for i in indices] for column in self._columns)
        return Preferences(*columns, self.origin.select(indices), Report(len(indices)))

    @property
    def _columns(self) -> tuple[list[Messages], list[Messages], list[Messages]]:
        return self.prompts, self.chosen, self.rejected


def read_preferences(name: str | Path) -> Preferences:
    """Preferences from whatever `read_table` reads: `{"prompt", "chosen", "rejected"}`.

    Each is a text (the prompt a user's message, the others the assistant's) or a list of messages.
    Without a prompt, `chosen` and `rejected` are whole conversations, and the prompt is what they
    begin with alike. Rows with an empty message, and those whose answers are the same, are left
    out and counted.

    Raises:
      DataError: as `read_table`; a row that lacks a field, a message without role or text, an
        answer that is not the assistant's, or no pair at all. Names file, line and remedy.
    """
    table = read_table(name)
    rows, kept = [], []
    dropped = {EMPTY: 0, SAME: 0}
    for i in range(len(table)):
        row = _pair(table, i)
        if not all(message["content"].strip() for part in row for message in part):
            dropped[EMPTY] += 1
        elif row[1] == row[2]:
            dropped[SAME] += 1
        else:
            rows.append(row)
            kept.append(i)
    report = table.report.and_dropped(dropped)
    if not rows:
        raise DataError(f"{name}: no pair of answers is left ({report}); give at least one")
    columns = (list(column) for column in zip(*rows, strict=True))
    return Preferences(*columns, table.origin.select(kept), report)


def _pair(table: Table, i: int) -> tuple[Messages, Messages, Messages]:
    row, where = table.rows[i], table.where(i)
    for side in SIDES:
        if side not in row:
            raise DataError(
                f'{where}: no field "{side}"; it has {", ".join(row) or "none"}; write prompt, '
                "chosen and rejected"
            )
    if "prompt" in row:
        prompt = turns(row["prompt"], where, "prompt", "user")
        answers = [turns(row[side], where, side, ASSISTANT) for side in SIDES]
    else:
        if any(isinstance(row[side], str) for side in SIDES):
            raise DataError(
                f'{where}: the answers are texts and there is no field "prompt"; write the prompt, '
                "or whole conversations as lists of messages"
            )
        whole = [messages_of(row[side], where, side) for side in SIDES]
        shared = 0
        while shared < min(map(len, whole)) - 1 and whole[0][shared] == whole[1][shared]:
            shared += 1
        prompt, answers = whole[0][:shared], [messages[shared:] for messages in whole]
    for side, messages in zip(SIDES, answers, strict=True):
        if messages[0]["role"] != ASSISTANT:
            raise DataError(
                f'{where}: "{side}" goes on after the prompt with a message of the '
                f"{messages[0]['role']}; the answers to compare must be the assistant's"
            )
    if not prompt:
        raise DataError(f"{where}: there is no message before the answers; write the prompt")
    return prompt, *answers


@dataclasses.dataclass(frozen=True)
class PreferenceFeatures(Sequence[Feature]):
    """What `preference_batches` makes batches of; a sequence of features.

    Attributes:
      examples: input_ids and labels of two texts each, the chosen one first.
      kept: which of the preferences each is.
      truncated: how many of them were cut at `max_length`.
      lost: how many were left out because no token of one of the answers was left.
      max_length: tokens of a text at most.
    """

    examples: list[dict[str, Any]]
    kept: list[int]
    truncated: int
    lost: int
    max_length: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def __str__(self) -> str:
        cut = f"{self.truncated} cut at {self.max_length} tokens" if self.truncated else (
            f"none longer than {self.max_length} tokens"
        )  # fmt: skip
        lost = f"; {self.lost} left out, as the prompt alone has as many" if self.lost else ""
        return f"{len(self)} pairs, {cut}{lost}"

    def with_reference(self, chosen: np.ndarray, rejected: np.ndarray) -> "PreferenceFeatures":
        """The same with the answers' log-probabilities under a reference, f[n] each."""
        pairs = zip(self.examples, chosen, rejected, strict=True)
        examples = [
            {**example, "reference_chosen_logps": float(c), "reference_rejected_logps": float(r)}
            for example, c, r in pairs
        ]
        return dataclasses.replace(self, examples=examples)


def preference_features(
    preferences: Preferences, tokenizer: Any, max_length: int
) -> PreferenceFeatures:
    """Prompts and answers as token ids, by the tokenizer's chat template.

    Args:
      preferences: pairs.
      tokenizer: with a chat template; see `encode_chats`.
      max_length: tokens beyond are cut off, at the end of the answer.

    Raises:
      TokenizerError: as `encode_chats`.
      DataError: no pair has a token of both answers within `max_length`.
    """
    context = [len(prompt) for prompt in preferences.prompts]
    sides = [
        encode_chats(
            tokenizer,
            [[*p, *a] for p, a in zip(preferences.prompts, answers, strict=True)],
            max_length,
            context=context,
        )
        for answers in (preferences.chosen, preferences.rejected)
    ]
    examples, kept = [], []
    for i, pair in enumerate(zip(*sides, strict=True)):
        if all(any(side.answers) for side in pair):
            labels = [
                [token if counts else IGNORED for token, counts in zip(*side[:2], strict=True)]
                for side in pair
            ]
            examples.append({"input_ids": [side.ids for side in pair], "labels": labels})
            kept.append(i)
    if not examples:
        raise DataError(
            f"{preferences.origin.name}: within {max_length} tokens no pair has any of its "
            "answers; raise --max-length, or shorten the prompts"
        )
    truncated = sum(any(side.truncated for side in pair) for pair in zip(*sides, strict=True))
    lost = len(preferences) - len(kept)
    return PreferenceFeatures(examples, kept, truncated - lost, lost, max_length)


def preference_batches(features: Sequence[Feature], batch_size: int, **options: Any) -> TextBatches:
    """Training batches of pairs; arguments and errors as `task_batches`.

    Returns:
      An iterator with `get_state` and `set_state` over batches of chosen_input_ids,
      chosen_labels, chosen_attention_mask and the like of rejected, i32[b, T], example_weight
      f32[b], and the reference's log-probabilities f32[b] where the features have them.
    """
    return task_batches(features, batch_size, transform=_by_side, **options)


def preference_eval_batches(
    features: Sequence[Feature], batch_size: int, **options: Any
) -> EvalTaskBatches:
    """Evaluation batches of pairs, as `preference_batches`; arguments of `eval_task_batches`."""
    return eval_task_batches(features, batch_size, transform=_by_side, **options)


def _by_side(batch: Batch) -> Batch:
    """Arrays [b, 2, T] as two, and the others as they are."""
    out: Batch = {}
    for name, x in batch.items():
        if x.ndim == 3:
            out |= {f"{side}_{name}": x[:, k] for k, side in enumerate(SIDES)}
        else:
            out[name] = x
    return out
