import types

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.objectives import CausalLM, expert_shares, load_balancing_loss, router_z_loss


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
