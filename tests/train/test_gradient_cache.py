"""Contrastive steps in parts, and the bound on CLIP's scale."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import QUICK

from fmjax.objectives import ContrastiveImageText, SigmoidImageText, SimCLR
from fmjax.parallel import make_mesh
from fmjax.train import make_step

H, D = 12, 6


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def two_towers(variables, pixel_values=None, input_ids=None, attention_mask=None, rngs=None):
    """Small towers without dropout."""
    p = variables["params"]
    image = jnp.tanh(pixel_values.reshape(len(pixel_values), -1) @ p["pixels"]) @ p["out"]
    text = jnp.tanh(p["table"][input_ids]).mean(1) @ p["out"]
    return types.SimpleNamespace(
        image_embeds=unit(image),
        text_embeds=unit(text),
        logit_scale=p["logit_scale"],
        logit_bias=p["logit_bias"],
    )


def one_tower(variables, pixel_values, rngs=None):
    p = variables["params"]
    x = pixel_values.reshape(len(pixel_values), -1)
    return types.SimpleNamespace(image_embeds=jnp.tanh(x @ p["pixels"]) @ p["out"])


def params(scale=2.0):
    rng = np.random.RandomState(0)
    normal = lambda *shape: jnp.asarray(rng.randn(*shape), jnp.float32)  # noqa: E731
    return {
        "pixels": normal(2 * 2 * 3, H) / 3,
        "table": normal(20, H),
        "out": normal(H, D),
        "logit_scale": jnp.float32(scale),
        "logit_bias": jnp.float32(-1.0),
    }


def batch(rows=16, views=()):
    rng = np.random.RandomState(1)
    weight = np.ones(rows, np.float32)
    weight[3], weight[6] = 0, 2
    made = {
        "pixel_values": rng.randn(rows, *views, 2, 2, 3).astype(np.float32),
        "example_weight": weight,
    }
    if not views:
        made["input_ids"] = rng.randint(0, 20, (rows, 4)).astype(np.int32)
    return made


def one_update(apply, objective, batch, **options):
    step = make_step(apply, objective, optax.sgd(0.3), clip_norm=None, **options)
    state = step.init({"params": params()}, jax.random.key(0))
    state, metrics = step(state, batch)
    return jax.device_get((state.variables["params"], metrics))


CASES = {
    "clip": (two_towers, ContrastiveImageText(), batch()),
    "siglip": (two_towers, SigmoidImageText(), batch()),
    "simclr": (one_tower, SimCLR(), batch(views=(2,))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_in_parts_is_the_step_on_the_whole_batch(name):
    whole, metrics = one_update(*CASES[name])
    variants = [{"accumulate": 4}]
    if name == "clip":
        variants += [{"accumulate": 2, "mesh": make_mesh()}]
    for options in variants:
        parts, again = one_update(*CASES[name], **options)
        for key, value in whole.items():
            np.testing.assert_allclose(parts[key], value, rtol=0, atol=1e-5, err_msg=key)
        assert metrics.keys() == again.keys()
        for key, value in metrics.items():
            np.testing.assert_allclose(again[key], value, rtol=1e-5, err_msg=key)
    assert np.abs(whole["pixels"] - params()["pixels"]).max() > 1e-3


def test_parts_save_memory():
    def deep(variables, pixel_values, rngs=None):
        x = pixel_values.reshape(len(pixel_values), -1) @ variables["params"]["pixels"]
        x = jnp.tile(x, (1, 64))
        for _ in range(4):
            x = jnp.sin(x * x)
        return types.SimpleNamespace(image_embeds=x[:, :D] + x.mean(-1, keepdims=True))

    def temporaries(accumulate):
        step = make_step(deep, SimCLR(), optax.sgd(0.1), accumulate=accumulate)
        state = step.abstract_state({"params": params()})
        lowered = step.lower(state, batch(1024, views=(2,)))
        return lowered.compile(QUICK).memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 2


def test_the_scale_is_brought_back_after_the_update_as_in_the_original():
    apply, objective, rows = CASES["clip"]
    # Away from 2 by half, which leaves both bounds behind.
    push = optax.stateless(lambda g, p: jax.tree.map(lambda x: 0.5 * jnp.sign(x - 2), p))
    step = make_step(apply, objective, push, trainable=((r"table", False), (r".", True)))
    for start, expected in ((0.1, 0), (1.5, 1.0), (3.0, 3.5), (4.5, np.log(100.0))):
        state, metrics = step(step.init({"params": params(start)}, jax.random.key(0)), rows)
        after = state.variables["params"]
        np.testing.assert_allclose(after["logit_scale"], expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["logit_scale"], np.exp(start), rtol=1e-5)
        assert after["logit_bias"] == -1.5  # Nothing else is bounded.
    # Only what is trained is.
    assert objective.project({"params": {"w": 7.0}}, {}) == {"params": {"w": 7.0}}
    free = ContrastiveImageText(max_scale=None)
    assert free.project({"params": {"logit_scale": 7.0}}, {}) == {"params": {"logit_scale": 7.0}}
