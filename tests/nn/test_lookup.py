"""Tables spread over devices are read without moving more than ids and rows."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core import logical
from fmjax.nn.lookup import lookup
from fmjax.parallel import RULES, make_mesh

V, D, B, T = 24, 16, 8, 4
LAYOUTS = (
    ("fsdp_tensor", {"data": 2, "fsdp": 2, "tensor": 2}, {}),
    ("fsdp_tensor", {"fsdp": 2, "tensor": 2, "context": 2}, {}),
    ("sequence", {"fsdp": 2, "tensor": 4}, {}),
    ("expert", {"fsdp": 2, "expert": 4}, {}),
    ("fsdp", {"fsdp": 8}, {}),
    ("tensor", {"tensor": 8}, {}),
    # Columns over an axis that splits no tokens.
    ("tensor", {"data": 2, "tensor": 4}, {"vocab": None, "embed": "tensor"}),
    ("fsdp", {"data": 2, "fsdp": 4}, {"batch": "data"}),
)


@pytest.mark.parametrize(("rules", "sizes", "more"), LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_gradients_are_those_of_one_device(rules, sizes, more, dtype) -> None:
    mesh = make_mesh(**{"data": 1, **sizes})
    pairs = (*more.items(), *RULES[rules])
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    ids = rng.integers(0, V, (B, T)).astype(np.int32)
    ids[0, 0] = -1
    ids[1, :2] = 3

    def read(table, ids):
        y, back = jax.vjp(lambda t: lookup(t, ids, ("vocab", "embed"), jnp.dtype(dtype)), table)
        return y, back(cotangent)[0]

    want = read(table, ids)
    with logical.use(mesh, pairs):
        got = jax.jit(read)(table, ids)
        outside = jax.jit(read)(table, ids + V)[0]
    np.testing.assert_array_equal(np.float32(got[0]), np.float32(want[0]))
    assert got[0].dtype == dtype
    # A row that is read often is summed in another order, and in bfloat16 where that travels.
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(got[1], want[1], rtol=tolerance, atol=tolerance)
    outside = np.float32(outside)
    np.testing.assert_array_equal(outside, np.float32(read(table, ids + V)[0]))
    assert np.isnan(outside[1]).all()
    assert not np.isnan(outside[0, 0]).any()  # −1 is the last row


PROGRAM = """
import jax, jax.numpy as jnp, optax, fmjax
from fmjax.objectives import CausalLM
from fmjax.parallel import RULES, make_mesh
model = fmjax.build({"model_type": "llama", "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4})
abstract = {"params": fmjax.abstract_params(model)}
batch = {"input_ids": jax.ShapeDtypeStruct((8, 16), jnp.int32)}
quick = {"xla_backend_optimization_level": 0}
for rules, sizes in (("fsdp_tensor", dict(data=2, fsdp=2, tensor=2)),
                     ("fsdp_tensor", dict(data=1, fsdp=2, tensor=2, context=2)),
                     ("fsdp", dict(data=2, fsdp=4))):
    step = fmjax.train.make_step(model, CausalLM(), optax.sgd(1.0), mesh=make_mesh(**sizes),
        rules=RULES[rules], abstract=abstract)
    step.lower(step.abstract_state(abstract), batch).compile(compiler_options=quick)
print("compiled")
"""


@pytest.mark.slow
def test_the_compiler_gathers_no_activation_against_its_will() -> None:
    # A cache would keep the compiler from saying anything.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert "compiled" in run.stdout, run.stderr
    assert "rematerialization" not in run.stderr, run.stderr
