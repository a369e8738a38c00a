import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import fmjax
from fmjax.parallel import describe, make_mesh, table


def test_every_array_has_a_line() -> None:
    mesh = make_mesh(data=1, fsdp=2, tensor=4)

    def lay(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    tree = {
        "a": {"kernel": lay(jnp.zeros((4, 256, 8)), None, ("fsdp", "tensor"))},
        "b": [lay(jnp.zeros(8, jnp.bfloat16)), np.zeros((2, 2), np.int8)],
        "c": jax.device_put(jnp.zeros(()), SingleDeviceSharding(jax.devices()[0])),
        "key": jax.random.key(0),
    }
    lines = [line.split("  ") for line in describe(tree).splitlines()]
    found = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert found == [
        ["array", "shape", "dtype", "partition", "bytes a device"],
        ["a/kernel", "4×256×8", "float32", "–, fsdp+tensor, –", "4.1 KB"],
        ["b/0", "8", "bfloat16", "whole", "16 B"],
        ["b/1", "2×2", "int8", "host", "4 B"],
        ["c", "scalar", "float32", "1 device(s)", "4 B"],
        ["key", "scalar", "key<fry>", "1 device(s)", "8 B"],
        ["total", "32.8 KB", "fsdp 2 × tensor 4", "4.1 KB"],
    ]
    joined = describe(tree, depth=1).splitlines()
    assert len(joined) == 6
    assert joined[2].split()[:3] == ["b", "2", "arrays"]


def test_a_state_that_does_not_exist_is_described_too() -> None:
    model = fmjax.build(
        {
            "model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2,
            "n_positions": 8,
        }
    )  # fmt: skip
    step = fmjax.train.make_step(
        model, fmjax.objectives.CausalLM(), optax.adam(1e-3), mesh=make_mesh(fsdp=8)
    )
    text = describe(step.abstract_state({"params": fmjax.abstract_params(model)}))
    line = next(x for x in text.splitlines() if "mu/" in x and "wte" in x)
    assert "64×16" in line
    assert "–, fsdp" in line
    assert line.endswith("512 B")


def test_a_rule_list_is_a_table() -> None:
    lines = table("fsdp_tensor").splitlines()
    assert "batch         stage × data × fsdp × expert  rows of the batch" in lines
    assert any(line.startswith("embed ") and " fsdp " in line for line in lines)
    short = table("fsdp_tensor", make_mesh(data=1, fsdp=4, tensor=2))
    assert "batch         fsdp=4    rows of the batch" in short.splitlines()
    assert "context" not in short
    assert len(table((("mlp", None), *fmjax.parallel.DEFAULT_RULES)).splitlines()) == len(lines)
