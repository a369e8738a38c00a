import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core.errors import ConfigError
from fmjax.objectives.causal_lm import CausalLM, next_token_targets

IDS = jnp.array([[5, 6, 7, 8], [1, 2, 3, 4]], jnp.int32)


def weights(**batch):
    return next_token_targets({"input_ids": IDS, **batch})[1].tolist()


def test_labels_move_left_and_the_last_position_weighs_nothing():
    targets, weight = next_token_targets({"input_ids": IDS})
    np.testing.assert_array_equal(targets, [[6, 7, 8, -100], [2, 3, 4, -100]])
    assert weight.tolist() == [[1, 1, 1, 0]] * 2


def test_ignored_labels():
    labels = jnp.array([[-100, -100, 7, 8], [1, 2, -100, 4]])
    assert weights(labels=labels) == [[0, 1, 1, 0], [1, 0, 1, 0]]


def test_padding_on_either_side_is_neither_target_nor_source():
    mask = jnp.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert weights(attention_mask=mask) == [[1, 1, 0, 0], [0, 1, 1, 0]]


def test_targets_do_not_cross_documents():
    segments = jnp.array([[1, 1, 2, 2], [1, 2, 2, 0]])
    assert weights(segment_ids=segments) == [[1, 0, 1, 0], [0, 1, 0, 0]]


def test_loss_mask_weighs_tokens_as_targets():
    assert weights(loss_mask=jnp.array([[0, 0, 1, 0.5]] * 2)) == [[0, 1, 0.5, 0]] * 2


def apply_table(variables, input_ids, rngs=None, **_):
    return types.SimpleNamespace(logits=variables["params"]["table"][input_ids])


@pytest.fixture
def variables():
    return {"params": {"table": jnp.asarray(np.random.RandomState(0).randn(9, 9), jnp.float32)}}


def test_loss_is_the_mean_negative_log_likelihood(variables):
    objective = CausalLM()
    batch = {"input_ids": IDS, "attention_mask": jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
    total, weight, metrics, extra = objective.loss(
        apply_table, variables, objective.init(variables), batch, None
    )
    log_probs = jax.nn.log_softmax(variables["params"]["table"])
    pairs = [(5, 6), (6, 7), (1, 2), (2, 3), (3, 4)]
    expected = -sum(float(log_probs[a, b]) for a, b in pairs)
    assert weight == 5 and extra == {}
    assert float(total) == pytest.approx(expected, rel=1e-6)
    hits = sum(int(jnp.argmax(log_probs[a])) == b for a, b in pairs)
    assert metrics["accuracy"] == (hits, 5) and metrics["loss"] == (total, weight)


def test_accuracy_is_read_in_evaluation_only_unless_asked(variables):
    def names(objective, rng):
        return set(objective.loss(apply_table, variables, {}, {"input_ids": IDS}, rng)[2])

    key = jax.random.key(0)
    assert names(CausalLM(), key) == {"loss"}
    assert names(CausalLM(), None) == {"loss", "accuracy"}
    assert names(CausalLM(accuracy=True), key) == {"loss", "accuracy"}
    assert names(CausalLM(accuracy=False), None) == {"loss"}


def test_z_loss_is_added_but_reported_apart(variables):
    batch = {"input_ids": IDS}
    plain, weight, _, _ = CausalLM().loss(apply_table, variables, {}, batch, None)
    total, _, metrics, _ = CausalLM(z_loss=0.1).loss(apply_table, variables, {}, batch, None)
    table = variables["params"]["table"]
    z = 0.1 * sum(jax.nn.logsumexp(table[i]) ** 2 for i in (5, 6, 7, 1, 2, 3))
    assert float(total - plain) == pytest.approx(float(z), rel=1e-5)
    assert metrics["loss"][0] == plain and metrics["z_loss"][1] == weight


@pytest.mark.parametrize("name", ["z_loss", "router_loss", "router_z_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_weights_of_losses_are_numbers(name, value):
    with pytest.raises(ConfigError, match=f"^{name} {value} must be a number that is not negative"):
        CausalLM(**{name: value})


def test_dropout_key_reaches_the_model(variables):
    seen = {}

    def apply(variables, input_ids, rngs=None):
        seen["rngs"] = rngs
        return apply_table(variables, input_ids)

    CausalLM().loss(apply, variables, {}, {"input_ids": IDS}, jax.random.key(3))
    assert seen["rngs"]["dropout"] == jax.random.key(3)
    CausalLM().loss(apply, variables, {}, {"input_ids": IDS}, None)
    assert seen["rngs"] is None


def test_perplexity():
    assert CausalLM().summarize({"loss": math.log(7)})["perplexity"] == pytest.approx(7)
    assert CausalLM().summarize({"loss": 1e6})["perplexity"] == math.inf
