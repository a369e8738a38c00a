"""The average of the parameters: its values, its place on a mesh, and in checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_lm
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core.errors import ConfigError
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import (
    Checkpointer,
    adamw,
    averaged,
    ema_params,
    evaluate,
    lora_plus,
    make_step,
    with_ema,
)


def start(optimizer, variables=None, **kwargs):
    step = make_step(toy_lm.apply, CausalLM(), optimizer, **kwargs)
    return step, step.init(variables or {"params": toy_lm.params()}, jax.random.key(0))


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_of_four_updates(warmup):
    step, state = start(with_ema(optax.sgd(0.5), 0.28, warmup=warmup))
    expected = jax.device_get(state.variables)
    batches = toy_lm.Batches()
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.28) if warmup else [0.28] * 4:
        state, _ = step(state, next(batches))
        expected = jax.tree.map(
            lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.variables
        )
    got = averaged(state).variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), got, expected)


def test_updates_are_the_optimizers_and_evaluation_sees_the_average():
    plain, a = start(adamw(1e-2))
    step, b = start(with_ema(adamw(1e-2), 0.5))
    batch = next(toy_lm.Batches())
    for _ in range(2):
        a, b = plain(a, batch)[0], step(b, batch)[0]
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)
    loss = evaluate(step, b, [batch])["loss"]
    assert evaluate(step, averaged(b), [batch])["loss"] > loss  # It lags behind.


def test_bfloat16_adapters_are_averaged_in_float32():
    adapter = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy_lm.adapter())
    variables = {"params": toy_lm.params(), "adapter": adapter}
    optimizer = with_ema(optax.chain(adamw(1e-2, moment_dtype="float32"), lora_plus(2.0)), 0.999)
    step, state = start(optimizer, variables)
    state, _ = step(state, next(toy_lm.Batches()))
    average = ema_params(state.opt_state)
    assert set(average) == {"adapter"} and "lora_scale" not in average["adapter"]["mlp"]
    new = state.variables["adapter"]["mlp"]["lora_b"].astype(jnp.float32)
    np.testing.assert_allclose(average["adapter"]["mlp"]["lora_b"], 1e-3 * new, rtol=1e-4)
    smooth = averaged(state).variables
    assert smooth["adapter"]["mlp"]["lora_a"].dtype == jnp.bfloat16
    assert smooth["params"]["head"]["kernel"] is state.variables["params"]["head"]["kernel"]


def test_shards_and_checkpoints(tmp_path):
    mesh = make_mesh(fsdp=8, data=1)
    params = jax.device_put(toy_lm.params(), NamedSharding(mesh, PartitionSpec()))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    params["mlp"]["kernel"] = jax.device_put(params["mlp"]["kernel"], split)
    step, state = start(with_ema(adamw(1e-2), 0.9), {"params": params}, mesh=mesh)
    state, _ = step(state, next(toy_lm.Batches()))
    assert ema_params(state.opt_state)["params"]["mlp"]["kernel"].sharding.spec == split.spec
    saver = Checkpointer(tmp_path)
    saver.save(1, state)
    restored = saver.restore(step.abstract_state(state.variables))
    saver.close()
    jax.tree.map(
        np.testing.assert_array_equal, averaged(restored).variables, averaged(state).variables
    )


def test_errors():
    with pytest.raises(ConfigError, match="decay 1.0 must lie in"):
        with_ema(adamw(1e-3), 1.0)
    with pytest.raises(ConfigError, match="keeps no average .* use with_ema"):
        averaged(start(adamw(1e-3))[1])
