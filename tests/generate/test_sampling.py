"""Processors against transformers', draws against the distribution they should follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core.errors import ConfigError
from fmjax.generate import Sampling
from fmjax.generate.sampling import draw, keep_min_p, keep_top_k, keep_top_p, penalise, process

LOGITS = np.random.default_rng(0).normal(size=(5, 203)).astype(np.float32) * 3


def theirs(processor, logits, ids=None):
    import torch

    ids = None if ids is None else torch.tensor(ids)
    return processor(ids, torch.tensor(logits)).numpy()


@pytest.mark.parametrize("k", [1, 7, 203, 1000])
def test_top_k(k):
    from transformers import TopKLogitsWarper

    np.testing.assert_array_equal(keep_top_k(LOGITS, k), theirs(TopKLogitsWarper(k), LOGITS))


def test_top_k_keeps_ties_with_the_last():
    from transformers import TopKLogitsWarper

    logits = np.array([[1.0, 3.0, 1.0, 0.0, 2.0]], np.float32)
    ours = keep_top_k(logits, 3)
    np.testing.assert_array_equal(ours, theirs(TopKLogitsWarper(3), logits))
    assert np.isfinite(ours).sum() == 4


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p(p):
    from transformers import TopPLogitsWarper

    ours = np.asarray(keep_top_p(LOGITS, p))
    np.testing.assert_array_equal(ours, theirs(TopPLogitsWarper(p), LOGITS))
    assert np.isfinite(ours).any(-1).all()


def test_logits_of_minus_infinity_stay_out():
    logits = np.where(LOGITS > 2, LOGITS, -np.inf)
    for ours in (keep_top_k(logits, 150), keep_top_p(logits, 0.999999), keep_top_p(logits, 1.0)):
        np.testing.assert_array_equal(np.isfinite(ours) & (LOGITS <= 2), False)
        assert (np.isfinite(ours).sum(-1) >= np.isfinite(logits).sum(-1) - 1).all()


def test_top_p_treats_equal_tokens_alike():
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.1, 0.1]], np.float32))
    np.testing.assert_array_equal(
        np.isfinite(keep_top_p(logits, 0.5)), [[True, True, True, False, False]]
    )


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p(p):
    from transformers import MinPLogitsWarper

    np.testing.assert_array_equal(keep_min_p(LOGITS, p), theirs(MinPLogitsWarper(p), LOGITS))


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    ids = np.random.default_rng(1).integers(0, 203, (5, 30))
    seen = np.zeros(LOGITS.shape, bool)
    np.put_along_axis(seen, ids, True, 1)
    np.testing.assert_array_equal(
        penalise(LOGITS, seen, penalty),
        theirs(RepetitionPenaltyLogitsProcessor(penalty), LOGITS, ids),
    )


def test_all_processors_in_transformers_order():
    import transformers as t

    ids = np.random.default_rng(1).integers(0, 203, (5, 30))
    seen = np.zeros(LOGITS.shape, bool)
    np.put_along_axis(seen, ids, True, 1)
    reference = t.LogitsProcessorList(
        [
            t.RepetitionPenaltyLogitsProcessor(1.2),
            t.TemperatureLogitsWarper(0.7),
            t.TopKLogitsWarper(40),
            t.TopPLogitsWarper(0.8),
            t.MinPLogitsWarper(0.05),
        ]
    )
    sampling = Sampling(0.7, top_k=40, top_p=0.8, min_p=0.05, repetition_penalty=1.2)
    ours = process(jnp.asarray(LOGITS), sampling.numbers(), seen)
    expected = theirs(reference, LOGITS, ids)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert 1 < np.isfinite(expected).sum() < 200  # something was kept and something cut


def test_neutral_settings_do_nothing():
    assert Sampling().numbers() == {}
    assert Sampling(temperature=1.0).numbers() == {"temperature": 1.0}
    assert Sampling(top_k=3, top_p=0.5, min_p=0.1).numbers() == {}  # greedy
    np.testing.assert_array_equal(process(LOGITS, {"temperature": 1.0}), LOGITS)


def test_draws_follow_the_distribution():
    probs = np.array([0.5, 0.3, 0.2, 0.0], np.float32)
    logits = jnp.broadcast_to(jnp.log(probs), (20000, 4))
    counts = np.bincount(draw(logits, jax.random.key(0)), minlength=4) / 20000
    np.testing.assert_allclose(counts, probs, atol=0.015)
    assert counts[3] == 0


def test_draws_of_a_row_do_not_depend_on_the_others():
    key = jax.random.key(3)
    np.testing.assert_array_equal(draw(LOGITS, key)[:2], draw(LOGITS[:2], key))
    assert len(set(np.asarray(draw(np.repeat(LOGITS[:1], 20, 0) / 9, key)).tolist())) > 1


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": True},
    ],
)
def test_a_setting_out_of_range_is_named(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Sampling(**setting)
