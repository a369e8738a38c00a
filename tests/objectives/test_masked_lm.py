import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core.errors import FmjaxError
from fmjax.objectives import MaskedLM

MASK, VOCAB, SPECIAL = 4, 1000, (0, 1, 2, 3)
OBJECTIVE = MaskedLM(mask_token_id=MASK, vocab_size=VOCAB, special_ids=SPECIAL)


@pytest.fixture(scope="module")
def batch():
    ids = np.random.RandomState(0).randint(5, VOCAB, (64, 512))
    ids[:, 0], ids[:, 100], ids[:, -1] = 2, 3, 3
    return {"input_ids": jnp.asarray(ids, jnp.int32)}


def test_shares_of_the_tokens_are_fifteen_and_80_10_10(batch) -> None:
    ids, labels = OBJECTIVE.hide(batch, jax.random.key(0))
    chosen = np.asarray(labels != -100)
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    before, after = np.asarray(batch["input_ids"])[chosen], np.asarray(ids)[chosen]
    np.testing.assert_array_equal(np.asarray(labels)[chosen], before)
    np.testing.assert_array_equal(ids[~chosen], batch["input_ids"][~chosen])
    assert (after == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (after == before).mean() == pytest.approx(0.1, abs=0.02)
    others = after[(after != MASK) & (after != before)]
    assert len(others) / len(after) == pytest.approx(0.1, abs=0.02)
    assert others.min() < 50 and others.max() > VOCAB - 50


def test_specials_and_padding_are_never_chosen(batch) -> None:
    padding = jnp.ones((64, 512), jnp.int32).at[:, 300:].set(0)
    everything = MaskedLM(MASK, VOCAB, SPECIAL, probability=1.0)
    for name in ("attention_mask", "segment_ids"):
        _, labels = everything.hide({**batch, name: padding}, jax.random.key(0))
        free = np.asarray(padding == 1) & (np.asarray(batch["input_ids"]) > 3)
        np.testing.assert_array_equal(labels != -100, free)


def test_the_key_decides(batch) -> None:
    one, again, other = (OBJECTIVE.hide(batch, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one[0], again[0])
    assert (one[1] != other[1]).any()


def test_whole_words(batch) -> None:
    words = jnp.broadcast_to((jnp.arange(512) // 3) * 7, (64, 512))  # three tokens each, gaps
    words = words.at[:, 9:12].set(-1)
    objective = MaskedLM(MASK, VOCAB, probability=0.3, whole_words=True)
    ids, labels = objective.hide({**batch, "word_ids": words}, jax.random.key(0))
    chosen = np.asarray(labels != -100)[:, :510].reshape(64, -1, 3)
    assert (chosen.all(-1) | ~chosen.any(-1)).all()
    assert not chosen[:, 3].any()
    assert chosen.mean() == pytest.approx(0.3, abs=0.02)
    assert np.asarray(ids)[:, :510].reshape(64, -1, 3)[chosen].size  # fates are the tokens' own
    # The second text of a row starts counting again; its words have chances of their own.
    twice = jnp.concatenate([words[:, :255], words[:, :255]], 1)
    ids = {"input_ids": batch["input_ids"][:, :510]}
    _, labels = objective.hide({**ids, "word_ids": twice}, jax.random.key(0))
    assert (np.asarray(labels != -100)[:, :255] != np.asarray(labels != -100)[:, 255:]).any()
    with pytest.raises(FmjaxError, match="whole_words needs word_ids"):
        objective.hide(batch, jax.random.key(0))


def apply_table(variables, input_ids, rngs=None, **_):
    return types.SimpleNamespace(logits=variables["params"]["table"][input_ids])


@pytest.fixture(scope="module")
def variables():
    table = np.random.RandomState(0).randn(VOCAB, VOCAB)
    return {"params": {"table": jnp.asarray(table, jnp.float32)}}


def test_loss_is_the_mean_over_hidden_tokens(batch, variables) -> None:
    small = {"input_ids": batch["input_ids"][:4, :32]}
    key = jax.random.key(5)
    total, weight, metrics, extra = OBJECTIVE.loss(
        apply_table, variables, OBJECTIVE.init(variables), small, key
    )
    ids, labels = OBJECTIVE.hide(small, jax.random.fold_in(key, 0))
    chosen = np.asarray(labels != -100)
    log_probs = np.asarray(jax.nn.log_softmax(variables["params"]["table"]))
    expected = -log_probs[np.asarray(ids)[chosen], np.asarray(labels)[chosen]].sum()
    assert weight == chosen.sum() and extra == {} and metrics == {"loss": (total, weight)}
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_evaluation_hides_the_same_tokens_every_time(batch, variables) -> None:
    def total(batch):
        sums = OBJECTIVE.loss(apply_table, variables, {}, batch, None)
        assert set(sums[2]) == {"loss", "accuracy"}
        return float(sums[0]), float(sums[1])

    one = {"input_ids": batch["input_ids"][:4, :64]}
    other = {"input_ids": one["input_ids"].at[0, 5].add(1)}
    assert total(one) == total(one) and total(one)[1] != total(other)[1]


def test_given_labels_are_predicted_as_they_are(batch, variables) -> None:
    ids = batch["input_ids"][:1, :4]
    labels = jnp.array([[-100, 7, -100, -100]])
    total, weight, _, _ = OBJECTIVE.loss(
        apply_table, variables, {}, {"input_ids": ids, "labels": labels}, None
    )
    log_probs = jax.nn.log_softmax(variables["params"]["table"])
    assert weight == 1 and float(total) == pytest.approx(float(-log_probs[ids[0, 1], 7]), rel=1e-5)


def test_inputs_and_the_dropout_key_reach_the_model(batch, variables) -> None:
    seen = {}

    def apply(variables, **inputs):
        seen.update(inputs)
        return apply_table(variables, inputs["input_ids"])

    small = {"input_ids": batch["input_ids"][:2, :8]}
    extras = {"token_type_ids": jnp.zeros((2, 8)), "attention_mask": jnp.ones((2, 8))}
    places = {"position_ids": jnp.zeros((2, 8), jnp.int32)}  # the encoder counts for itself
    OBJECTIVE.loss(apply, variables, {}, small | extras | places, jax.random.key(0))
    assert seen.keys() == {"input_ids", "rngs", *extras}
    seen.clear()
    OBJECTIVE.loss(apply, variables, {}, small, None)
    assert seen.keys() == {"input_ids"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(probability=0.0), "probability=0.0"),
        (dict(masked=0.8, random=0.3), "masked=0.8 and random=0.3"),
        (dict(mask_token_id=1000), "mask_token_id=1000 is outside"),
    ],
)
def test_impossible_settings(options, message) -> None:
    with pytest.raises(FmjaxError, match=message):
        MaskedLM(**(dict(mask_token_id=MASK, vocab_size=VOCAB) | options))


def test_perplexity() -> None:
    assert OBJECTIVE.summarize({"loss": math.log(7)})["perplexity"] == pytest.approx(7)
    assert OBJECTIVE.summarize({"loss": 1e6})["perplexity"] == math.inf
