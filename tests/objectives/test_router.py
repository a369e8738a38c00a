import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fmjax
from fmjax.models.mixtral.config import MixtralConfig
from fmjax.objectives import (
    CausalLM,
    expert_shares,
    load_balancing_loss,
    router_statistics,
    router_z_loss,
)
from fmjax.train import make_step

STATISTICS = {"expert_load_max", "expert_load_min", "router_entropy"}


def test_router_losses():
    even = jnp.zeros((1, 4, 4)).at[0, jnp.arange(4), jnp.arange(4)].set(1e-3)
    np.testing.assert_allclose(load_balancing_loss([even, even], 1), 1.0, rtol=1e-4)
    one = jnp.zeros((1, 4, 4)).at[..., 0].set(50.0)
    np.testing.assert_allclose(load_balancing_loss([one], 1), 4.0, rtol=1e-6)
    np.testing.assert_allclose(router_z_loss([jnp.zeros((1, 4, 4))]), np.log(4) ** 2, rtol=1e-6)
    mask = jnp.array([[1, 1, 0, 0]])
    np.testing.assert_allclose(expert_shares([even], 1, mask), [[0.5, 0.5, 0, 0]])


def test_causal_lm_adds_the_router_losses_and_reports_them_apart():
    """As means over the tokens that are not padding, weighted like the loss itself."""
    router_logits = [jax.random.normal(jax.random.key(i), (2, 4, 4)) for i in range(2)]

    def apply(variables, input_ids, attention_mask, output_router_logits=False):
        logits = jnp.zeros((*input_ids.shape, 9))
        routed = router_logits if output_router_logits else None
        return types.SimpleNamespace(logits=logits, router_logits=routed)

    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    batch = {"input_ids": jnp.ones((2, 4), jnp.int32), "attention_mask": mask}
    plain, weight, _, _ = CausalLM().loss(apply, {}, {}, batch, None)
    objective = CausalLM(router_loss=0.1, router_z_loss=0.2, experts_per_token=3)
    total, _, metrics, _ = objective.loss(apply, {}, {}, batch, None)
    balance = 0.1 * load_balancing_loss(router_logits, 3, mask)
    z = 0.2 * router_z_loss(router_logits, mask)
    np.testing.assert_allclose((total - plain) / weight, balance + z, rtol=1e-4)
    np.testing.assert_allclose(metrics["router_loss"][0] / weight, balance, rtol=1e-6)
    np.testing.assert_allclose(metrics["router_z_loss"][0] / weight, z, rtol=1e-6)
    assert STATISTICS <= metrics.keys()
    objective = dataclasses.replace(objective, router_metrics=False)
    assert not STATISTICS & objective.loss(apply, {}, {}, batch, None)[2].keys()


def test_router_statistics_of_two_layers():
    """One layer sends all to one expert without doubt, the other is even and undecided."""
    sure = jnp.zeros((1, 4, 4)).at[..., 2].set(100.0)
    even = jnp.zeros((1, 4, 4)).at[0, jnp.arange(4), jnp.arange(4)].set(1e-4)
    assert {k: round(float(v), 5) for k, v in router_statistics([sure], 1).items()} == {
        "expert_load_max": 4.0, "expert_load_min": 0.0, "router_entropy": 0.0
    }  # fmt: skip
    assert {k: round(float(v), 5) for k, v in router_statistics([even, sure], 1).items()} == {
        "expert_load_max": 2.5, "expert_load_min": 0.5, "router_entropy": 0.5
    }  # fmt: skip
    # Of the first two tokens, each visits an expert of its own; the others are padding.
    masked = router_statistics([even], 1, jnp.array([[1, 1, 0, 0]]))
    np.testing.assert_allclose(masked["expert_load_max"], 2.0)
    np.testing.assert_allclose(masked["expert_load_min"], 0.0)


@pytest.mark.slow
def test_a_mixtral_reports_its_routers_while_it_trains():
    """In one step, with what its own logits say; they change neither loss nor gradient."""
    model = fmjax.build(
        MixtralConfig(
            vocab_size=29,
            hidden_size=16,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            num_experts_per_tok=2,
        )
    )
    params = fmjax.init_params(model, jax.random.key(0))
    mask = np.ones((2, 6), np.int32)
    mask[1, 4:] = 0
    ids = np.random.RandomState(0).randint(3, 29, (2, 6)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": mask}
    run = jax.jit(model.apply, static_argnames="output_router_logits")
    logits = run({"params": params}, **batch, output_router_logits=True).router_logits
    expected = jax.device_get(router_statistics(logits, 2, mask))
    norms = []
    for options in ({"router_metrics": True}, {}):
        step = make_step(model, CausalLM(**options), optax.sgd(0.1))
        state = step.init({"params": jax.tree.map(jnp.copy, params)}, jax.random.key(1))
        _, metrics = step(state, batch)
        assert STATISTICS & metrics.keys() == (STATISTICS if options else set())
        for name in STATISTICS & metrics.keys():
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
        norms.append(float(metrics["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert 1 < expected["expert_load_max"] <= 2 and 0.5 < expected["router_entropy"] < 1
