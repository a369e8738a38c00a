"""Units of perplexity."""

import math

import pytest

from fmjax.core.errors import DataError
from fmjax.evals import Perplexity, perplexity


def test_units():
    # 2 nats for each of 8 predicted tokens; 10 tokens, 40 bytes, 5 words.
    p = Perplexity(nats=2.0, predicted=8, tokens=10, nbytes=40, words=5)
    assert p.per_token == pytest.approx(math.exp(2))
    assert p.per_word == pytest.approx(math.exp(4))
    assert p.bits_per_byte == pytest.approx(0.5 / math.log(2))
    assert p.to_dict()["per_word"] == p.per_word
    assert Perplexity(1e3, 1, 1, 1, 1).per_token == math.inf


def test_sums_over_batches():
    batches = [(3.0, 2.0), (5.0, 2.0), (0.0, 0.0)]
    p = perplexity(lambda batch: batch, batches, ["aé b", "c"], 6)
    assert (p.nats, p.predicted, p.tokens, p.nbytes, p.words) == (2.0, 4, 6, 6, 3)


@pytest.mark.parametrize("batches, texts", [([], ["a"]), ([(1.0, 1.0)], []), ([(0.0, 0.0)], ["a"])])
def test_nothing_to_measure(batches, texts):
    with pytest.raises(DataError, match="nothing to measure"):
        perplexity(lambda batch: batch, batches, texts, 1)
