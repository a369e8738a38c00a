"""What the compiler counts for a step is what arithmetic says."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import ShapeDtypeStruct

from fmjax.core import tree
from fmjax.objectives import CausalLM
from fmjax.train import adamw, compact_adamw, make_step, with_ema

pytestmark = pytest.mark.optimised

L, V, D, R = 4, 32, 1024, 512  # Beside the factors of a layer, its activations are nothing.


def apply(variables, input_ids, rngs=None):
    """A scanned stack of dense layers with low-rank factors, and a tied head."""
    p, a = variables["params"], variables["adapter"]

    def layer(x, leaves):
        kernel, lora_a, lora_b = leaves
        return jnp.tanh(x @ kernel + 2 * (x @ lora_a @ lora_b)), None

    leaves = (p["layers"]["kernel"], a["layers"]["lora_a"], a["layers"]["lora_b"])
    x, _ = jax.lax.scan(layer, p["embed"][input_ids], leaves)
    return types.SimpleNamespace(logits=x @ p["embed"].T)


def compiled(optimizer):
    """(memory analysis of a step, bytes of the base, of the adapter)."""
    struct = lambda *shape: ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    variables = {
        "params": {"embed": struct(V, D), "layers": {"kernel": struct(L, D, D)}},
        "adapter": {"layers": {"lora_a": struct(L, D, R), "lora_b": struct(L, R, D)}},
    }
    step = make_step(apply, CausalLM(), optimizer)
    batch = {"input_ids": np.zeros((1, 2), np.int32)}
    memory = step.lower(step.abstract_state(variables), batch).compile().memory_analysis()
    return memory, tree.nbytes(variables["params"]), tree.nbytes(variables["adapter"])


@pytest.mark.parametrize(
    ("moment_dtype", "moments"),
    [(None, 8), ("float32", 8), ("bfloat16", 4), ("int8", 2 * (1 + 4 / 256))],
)
def test_adapter_and_moments(moment_dtype, moments):
    """Bytes that a step is given beside the base, and gives back in the same place."""
    memory, base, adapter = compiled(adamw(1e-3, moment_dtype=moment_dtype))
    expected = adapter // 4 * (4 + moments)
    np.testing.assert_allclose(memory.argument_size_in_bytes - base, expected, rtol=0.01)
    np.testing.assert_allclose(memory.alias_size_in_bytes, expected, rtol=0.01)
    np.testing.assert_allclose(memory.output_size_in_bytes, expected, rtol=0.01)


def test_gradients_are_the_only_temporaries_of_the_adapters_size(monkeypatch):
    """The slope over the number of layers, in which what a single layer needs falls out."""
    sizes = []
    for layers in (32, 64):
        monkeypatch.setattr(sys.modules[__name__], "L", layers)
        memory, _, adapter = compiled(adamw(1e-3))
        sizes.append((memory.temp_size_in_bytes, adapter))
    (few, small), (many, large) = sizes
    np.testing.assert_allclose(many - few, large - small, rtol=0.01)


def test_an_average_costs_four_bytes_a_parameter():
    memory, base, adapter = compiled(with_ema(adamw(1e-3), 0.99))
    held = memory.argument_size_in_bytes - base
    np.testing.assert_allclose(held, adapter * 4, rtol=0.01)


def test_int8_updates_need_float32_of_one_layer(monkeypatch):
    monkeypatch.setattr(compact_adamw, "SLICE", 1)
    monkeypatch.setattr(sys.modules[__name__], "L", 32)
    layerwise, _, adapter = compiled(adamw(1e-3, moment_dtype="int8"))
    monkeypatch.setattr(compact_adamw, "SLICE", 1 << 40)
    whole, _, _ = compiled(adamw(1e-3, moment_dtype="int8"))
    assert layerwise.temp_size_in_bytes < 2.5 * adapter < whole.temp_size_in_bytes
