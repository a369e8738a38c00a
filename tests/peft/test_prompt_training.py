"""Training of prompts and of IA³ with packed documents, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from torch_twins import MODELS, SMALL

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.objectives import CausalLM

SPECS = {
    "prompt": peft.Prompt(4),
    "prompt of words": peft.Prompt(4, init_ids=(3, 7)),
    "mlp": peft.PTuning(4, hidden_size=16),
    "lstm": peft.PTuning(4, hidden_size=16, kind="lstm"),
    "ia3": peft.IA3(),
}
MODEL = fmjax.build({"model_type": "llama"} | SMALL | MODELS["LlamaForCausalLM"])
IDS = np.random.default_rng(0).integers(1, 50, (4, 12)).astype(np.int32)
# Two documents a row and a slot of padding.
BATCH = {
    "input_ids": IDS,
    "segment_ids": np.array([[1] * 5 + [2] * 6 + [0]] * 4, np.int32),
    "position_ids": np.array([[*range(5), *range(6), 0]] * 4, np.int32),
}


def train(spec, mesh=None, steps=10):
    params = fmjax.init_params(MODEL, jax.random.key(0), mesh=mesh)
    adapter = peft.init(jax.random.key(1), spec, MODEL, params, mesh=mesh)
    start = jax.tree.map(np.array, adapter)
    step = fmjax.train.make_step(peft.applied(spec, MODEL), CausalLM(), optax.adam(0.03), mesh=mesh)
    state = step.init({"params": params, "adapter": adapter}, jax.random.key(0))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    return start, state, losses


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_training_moves_the_adapter_alone(spec, tmp_path):
    start, state, losses = train(spec)
    assert losses[-1] < losses[0] - 0.1
    assert tree.count(state.opt_state[0].mu) == peft.count(spec, MODEL)
    adapter = state.variables["adapter"]
    for path, x in tree.flatten(start).items():
        assert np.abs(x - tree.flatten(adapter)[path]).max() > 1e-3, path
    peft.save(tmp_path, spec, adapter, MODEL, params=state.variables["params"])
    _, loaded = peft.load(tmp_path, MODEL, state.variables["params"])
    expanded = peft.expand(spec, MODEL, adapter)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), loaded, expanded)


@pytest.mark.parametrize("name", ["prompt", "lstm", "ia3"])
def test_a_mesh_computes_the_same(name):
    _, _, alone = train(SPECS[name], steps=3)
    _, _, many = train(SPECS[name], fmjax.make_mesh(data=2, fsdp=2, tensor=2), steps=3)
    np.testing.assert_allclose(many, alone, rtol=1e-4)


def test_half_precision(tmp_path):
    half = fmjax.build(MODEL.config, dtype="bfloat16")
    params = fmjax.init_params(MODEL, jax.random.key(0))
    for spec in (SPECS["prompt"], SPECS["ia3"]):
        variables = {"params": params, "adapter": peft.init(jax.random.key(1), spec, MODEL)}
        out = jax.jit(half.apply)(variables, jnp.asarray(IDS))
        assert out.last_hidden_state.dtype == jnp.bfloat16
        full = jax.jit(MODEL.apply)(variables, jnp.asarray(IDS))
        assert np.abs(out.logits - full.logits).max() < 0.3
