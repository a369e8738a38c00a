"""int8 products: the arithmetic by hand, gradients, sharding, learning, and what is refused."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fmjax
from fmjax import quant
from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.nn.dense import Dense
from fmjax.nn.int8_dot import int8_dot
from fmjax.objectives import CausalLM
from fmjax.train import make_step

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def rounded(x: jax.Array, axis: int | tuple[int, ...]) -> np.ndarray:
    """x as its int8 codes, with a scale for what shares `axis`, stand for it; float64.

    The largest magnitude is the last code, 127.
    """
    x = np.asarray(x)
    scale = np.abs(x).max(axis, keepdims=True) / np.float32(127)
    return np.rint(x / scale).clip(-128, 127).astype(np.float64) * scale


def centred(key: int, shape: tuple[int, ...], ends: tuple[int, ...]) -> jax.Array:
    """Random values in the middle of their codes, which no rounding error leaves.

    Places 0 on the axes `ends` get the largest magnitude.
    """
    x = np.random.default_rng(key).integers(-99, 99, shape).astype(np.float32)
    for axis in ends:
        np.moveaxis(x, axis, 0)[0] = 127
    return jnp.asarray(x / 64)


@pytest.mark.parametrize("features", [(24,), (3, 8)])
def test_values_and_gradients_are_those_of_rounded_operands(features) -> None:
    x, w = centred(0, (2, 5, 16), (2,)), centred(1, (16, *features), (0, 1))
    dy = centred(2, (2, 5, *features), (2,))
    y, pullback = jax.vjp(lambda x, w: int8_dot(x, w, jnp.float32), x, w)
    np.testing.assert_allclose(y, np.tensordot(rounded(x, -1), rounded(w, 0), 1), rtol=1e-5)
    dx, dw = pullback(dy)
    outputs = tuple(range(1, w.ndim))
    last = tuple(range(2, dy.ndim))
    want = np.tensordot(rounded(dy, last), rounded(w, outputs), (last, outputs))
    np.testing.assert_allclose(dx, want, rtol=1e-5)
    np.testing.assert_allclose(dw, np.tensordot(x, dy, ((0, 1), (0, 1))), rtol=1e-5)


def test_the_program_multiplies_integers() -> None:
    x, w = jnp.ones((8, 16), "bfloat16"), jnp.ones((16, 24), "bfloat16")
    text = jax.jit(lambda x, w: int8_dot(x, w, jnp.bfloat16)).lower(x, w).as_text()
    assert "dot_general" in text and "xi8>" in text and "xi32>" in text


def test_sharded_is_unsharded() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    x, w, dy = centred(0, (8, 32), (1,)), centred(1, (32, 16), (0, 1)), centred(2, (8, 16), (1,))

    @jax.jit
    def step(x, w):
        y, pullback = jax.vjp(lambda x, w: int8_dot(x, w, jnp.float32), x, w)
        return y, pullback(dy)

    placed = (
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp"))),
        jax.device_put(w, NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))),
    )
    for got, want in zip(*map(jax.tree.leaves, (step(*placed), step(x, w))), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_no_number_of_a_row_is_between_two_codes() -> None:
    """A row's length changes the last bit of what is rounded, and no code: not of the largest."""
    x, w = -centred(0, (50, 32), (1,)), centred(1, (32, 16), (0, 1))
    lengths = np.random.default_rng(2).uniform(1, 2, (50, 1)).astype(np.float32)
    got = int8_dot(x * lengths, w, jnp.float32)
    np.testing.assert_allclose(got, int8_dot(x, w, jnp.float32) * lengths, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_model_learns_as_it_does_without() -> None:
    ids = jax.random.randint(jax.random.key(3), (4, 16), 0, 64)

    def losses(matmul: str, remat: str = "none") -> list[float]:
        model = fmjax.build(LLAMA, matmul=matmul, remat=remat)
        step = make_step(model, CausalLM(), optax.adam(3e-3))
        params = fmjax.init_params(model, jax.random.key(0))
        state, out = step.init({"params": params}, jax.random.key(1)), []
        for _ in range(20):
            state, metrics = step(state, {"input_ids": ids})
            out.append(float(metrics["loss"]))
        return out

    exact, rough = losses("default"), losses("int8")
    assert exact[-1] < exact[0] - 0.5
    assert rough != exact
    np.testing.assert_allclose(rough, exact, atol=0.03)
    np.testing.assert_allclose(losses("int8", "full"), rough, atol=1e-3)


def test_unknown_and_unfitting_are_refused(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="'fp4' is unknown; choose one of default, int8"):
        Execution(matmul="fp4")
    dense = Dense(8, ("embed", "mlp"), execution=Execution(matmul="int8"), name="mlp")
    packed = {"params": {"kernel": quant.quantize(jnp.ones((64, 8)), "int8")}}
    with pytest.raises(ConfigError, match="packed"):
        dense.apply(packed, jnp.ones((2, 64)))
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match=r"fmjax\[int8\]"):
        dense.apply({"params": {"kernel": jnp.ones((64, 8))}}, jnp.ones((2, 64)))
