"""Perplexity of a language model on held-out text, in units that compare across tokenizers."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fmjax.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """How surprising a text is to a model.

    Attributes:
      nats: mean negative log-likelihood of a predicted token.
      predicted: number of tokens that were predicted.
      tokens: number of tokens of the text, with the marks between documents.
      nbytes: length of the text in UTF-8.
      words: number of its words, split at white space.

    The first token of each row has nothing before it and is not predicted; the units below take
    it to cost as much as the mean.
    """

    nats: float
    predicted: int
    tokens: int
    nbytes: int
    words: int

    @property
    def per_token(self) -> float:
        """e^nats; depends on the tokenizer."""
        return _exp(self.nats)

    @property
    def per_word(self) -> float:
        """Perplexity of a word, whatever tokens it is made of."""
        return _exp(self.nats * self.tokens / self.words)

    @property
    def bits_per_byte(self) -> float:
        """Length of an ideal code made from the model, in bits for each byte of the text."""
        return self.nats * self.tokens / self.nbytes / math.log(2)

    def to_dict(self) -> dict[str, float]:
        """All figures by name, for JSON."""
        return dataclasses.asdict(self) | {
            "per_token": self.per_token,
            "per_word": self.per_word,
            "bits_per_byte": self.bits_per_byte,
        }


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def perplexity(
    evaluate: Callable[[Mapping[str, Any]], tuple[Any, Any]],
    batches: Iterable[Mapping[str, Any]],
    texts: Iterable[str],
    tokens: int,
) -> Perplexity:
    """Measures a text that is also given as batches.

    Args:
      evaluate: batch → (sum of the negative log-likelihoods in nats, number of targets).
      batches: cover the text once.
      texts: its documents, to count bytes and words.
      tokens: number of its tokens.

    Raises:
      DataError: no token to predict.
    """
    nats, predicted = 0.0, 0.0
    for batch in batches:
        total, weight = evaluate(batch)
        nats += float(total)
        predicted += float(weight)
    nbytes = words = 0
    for text in texts:
        nbytes += len(text.encode())
        words += len(text.split())
    if not predicted or not words:
        raise DataError("nothing to measure: the text has no word or no token to predict")
    return Perplexity(nats / predicted, round(predicted), tokens, nbytes, words)
