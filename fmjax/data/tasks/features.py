"""Texts as token ids: what `task_batches` makes batches of."""

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

from fmjax.core.errors import DataError
from fmjax.data.encoding import Encoding, encode_batch
from fmjax.data.tasks.classification import Classification
from fmjax.data.tasks.collate import Feature
from fmjax.data.tasks.labels import MULTI
from fmjax.data.tasks.pairs import Pairs

_CHUNK = 1024  # texts handed to the tokenizer at a time; their offsets are not kept


@dataclasses.dataclass(frozen=True)
class Features(Sequence[Feature]):
    """One dict an example; a sequence of them.

    Attributes:
      examples: see `task_batches`.
      texts: how many texts (or pairs of texts) were encoded.
      truncated: how many of them were cut at `max_length` tokens.
    """

    examples: list[Feature]
    texts: int
    truncated: int
    max_length: int

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Feature: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feature]: ...
    def __getitem__(self, index):
        return self.examples[index]

    def __str__(self) -> str:
        if not self.truncated:
            return f"{self.texts} texts, none longer than {self.max_length} tokens"
        return f"{self.truncated} of {self.texts} texts were cut at {self.max_length} tokens"


def text_features(
    texts: Sequence[str],
    tokenizer: Any,
    max_length: int,
    pairs: Sequence[str] | None = None,
    *,
    token_types: bool = True,
    names: Sequence[str] | None = None,
) -> Features:
    """Features without labels: `input_ids`, and `token_type_ids` of pairs.

    `token_type_ids` are there only where the tokenizer gives the second text a type of its own
    (BERT's does, RoBERTa's does not) and the model knows them.

    Args:
      tokenizer: as `encode` takes.
      max_length: most tokens of a text, or of a pair together; the longer text is cut first.
      pairs: the second text of each.
      token_types: False for a model without them, such as LLaMA, whatever its tokenizer says.
      names: what errors call each text; default "text 0" and so on.

    Raises:
      DataError: a text of which the tokenizer makes no token.
    """
    examples: list[dict[str, Any]] = []
    truncated = 0
    for start in range(0, len(texts), _CHUNK):
        part = slice(start, start + _CHUNK)
        some = texts[part], None if pairs is None else pairs[part]
        encodings = encode_batch(tokenizer, *some, max_length)
        truncated += _truncated(encodings, *some, tokenizer, max_length)
        for encoding in encodings:
            if all(source is None for source in encoding.sequence_ids):
                name = names[len(examples)] if names else f"text {len(examples)}"
                raise DataError(
                    f"{name}: the tokenizer makes no token of this text; correct it or remove the "
                    "row"
                )
            examples.append({"input_ids": encoding.ids, "token_type_ids": encoding.type_ids})
    if not token_types or not any(1 in example["token_type_ids"] for example in examples):
        for example in examples:
            del example["token_type_ids"]
    return Features(examples, len(texts), truncated, max_length)


def _truncated(
    encodings: Sequence[Encoding],
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: Any,
    max_length: int,
) -> int:
    """How many were cut: only those as long as can be are encoded again, in full."""
    full = [i for i, encoding in enumerate(encodings) if len(encoding) == max_length]
    if not full:
        return 0
    again = encode_batch(
        tokenizer, [texts[i] for i in full], None if pairs is None else [pairs[i] for i in full]
    )
    return sum(len(encoding) > max_length for encoding in again)


def classification_features(
    data: Classification, tokenizer: Any, max_length: int, *, token_types: bool = True
) -> Features:
    """`text_features` with `labels`: an int, or one float or N floats.

    Raises:
      DataError: a text of which the tokenizer makes no token; names file and line.
    """
    names = [data.where(i) for i in range(len(data))]
    features = text_features(
        data.texts, tokenizer, max_length, data.pairs, token_types=token_types, names=names
    )
    labels: Sequence[Any] = data.labels
    if data.problem_type == MULTI:
        labels = [[float(on) for on in row] for row in data.labels]
    examples = [
        {**feature, "labels": label}
        for feature, label in zip(features.examples, labels, strict=True)
    ]
    return dataclasses.replace(features, examples=examples)


def pair_features(data: Pairs, tokenizer: Any, max_length: int) -> Features:
    """`input_ids` of K texts an example: anchor, positive, hard negatives; `labels`: the score.

    Raises:
      DataError: a text of which the tokenizer makes no token; names file and line.
    """
    rows = [[*pair] for pair in data.keys()]
    if data.negatives is not None:
        rows = [row + negatives for row, negatives in zip(rows, data.negatives, strict=True)]
    k = len(rows[0])
    names = [data.where(i) for i in range(len(data)) for _ in range(k)]
    flat = text_features([t for row in rows for t in row], tokenizer, max_length, names=names)
    ids = [feature["input_ids"] for feature in flat.examples]
    examples: list[Feature] = [{"input_ids": ids[i * k : (i + 1) * k]} for i in range(len(data))]
    if data.scores is not None:
        examples = [
            {**example, "labels": score}
            for example, score in zip(examples, data.scores, strict=True)
        ]
    return dataclasses.replace(flat, examples=examples)
