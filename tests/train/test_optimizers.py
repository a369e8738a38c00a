import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import toy_lm

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.train import DECAY, adamw, schedules


def updates(optimizer, params, grad):
    grads = jax.tree.map(lambda p: jnp.full_like(p, grad), params)
    out, _ = optimizer.update(grads, optimizer.init(params), params)
    return tree.flatten(out)


def test_decay_acts_on_matrices_and_tables_only():
    params = {"params": toy_lm.params(), "adapter": toy_lm.adapter()}
    mask = tree.flatten(tree.match_rules(DECAY, params))
    assert {path for path, decayed in mask.items() if not decayed} == {
        "params/mlp/bias",
        "params/norm/scale",
        "adapter/mlp/lora_scale",
    }
    moved = updates(adamw(0.5, weight_decay=0.2), params, 0.0)
    flat = tree.flatten(params)
    for path, decayed in mask.items():
        expected = -0.5 * 0.2 * flat[path] if decayed else 0 * flat[path]
        np.testing.assert_allclose(moved[path], expected, rtol=1e-6)


def test_stacked_norms_and_biases_are_not_decayed():
    stacked = {"layers": {"norm": {"scale": jnp.ones((3, 4)), "bias": jnp.ones((3, 4))}}}
    assert not any(tree.flatten(tree.match_rules(DECAY, stacked)).values())


def test_decay_rules_are_the_callers():
    rules = [(r"head/", True), (r".", False)]
    moved = updates(adamw(1.0, weight_decay=0.1, decay=rules), toy_lm.params(), 0.0)
    assert {path for path, x in moved.items() if x.any()} == {"head/kernel"}
    with pytest.raises(ConfigError, match="no decay rule covers parameter 'embed/embedding'"):
        adamw(1.0, decay=rules[:1]).init(toy_lm.params())


def test_first_update_is_the_rate_in_each_coordinate():
    moved = updates(adamw(0.01, weight_decay=0.0), {"w": {"kernel": jnp.ones((2, 2))}}, 3.0)
    np.testing.assert_allclose(moved["w/kernel"], -0.01, rtol=1e-5)


@pytest.mark.parametrize("moment_dtype", [None, "float32"])
def test_a_decay_may_follow_a_schedule_of_its_own(moment_dtype):
    """As in torch, where a loop sets it before each update."""
    rng = np.random.RandomState(0)
    start, grads = rng.randn(3, 4).astype(np.float32), rng.randn(3, 3, 4).astype(np.float32)
    decay = schedules.cosine(0.04, 0.4, 2)
    optimizer = adamw(0.1, b2=0.99, weight_decay=decay, moment_dtype=moment_dtype)
    theirs = torch.nn.Parameter(torch.tensor(start))
    peer = torch.optim.AdamW([theirs], 0.1, (0.9, 0.99), 1e-8)
    params = {"head": {"kernel": jnp.asarray(start)}}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t, grad in enumerate(grads):
        moved, state = update({"head": {"kernel": jnp.asarray(grad)}}, state, params)
        params = jax.tree.map(jnp.add, params, moved)
        peer.param_groups[0]["weight_decay"] = (0.04, 0.22, 0.4)[t]
        theirs.grad = torch.tensor(grad)
        peer.step()
        np.testing.assert_allclose(params["head"]["kernel"], theirs.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"learning_rate": -1.0}, "learning_rate -1.0 must be a number that is not negative"),
        ({"learning_rate": 1.0, "b2": 1.0}, "must lie in"),
        ({"learning_rate": float("nan")}, "learning_rate nan must be a number"),
        ({"learning_rate": 1.0, "weight_decay": -0.1}, "weight_decay -0.1 must be a number"),
        ({"learning_rate": 1.0, "eps": float("nan")}, "eps nan must be a number"),
    ],
)
def test_bad_numbers(kwargs, text):
    with pytest.raises(ConfigError, match=text):
        adamw(**kwargs)


def at(schedule, *counts):
    return [float(schedule(count)) for count in counts]


def test_schedules():
    s = schedules
    np.testing.assert_allclose(at(s.constant(2.0, warmup=4), 0, 2, 4, 99), [0, 1, 2, 2])
    np.testing.assert_allclose(
        at(s.linear(2.0, 12, warmup=2), 0, 1, 2, 7, 12, 20), [0, 1, 2, 1, 0, 0]
    )
    np.testing.assert_allclose(
        at(s.warmup_cosine(2.0, 12, warmup=2), 1, 2, 7, 12, 20), [1, 2, 1.1, 0.2, 0.2], rtol=1e-6
    )
    wsd = s.warmup_stable_decay(2.0, 20, warmup=2, decay=4, end=0.4)
    np.testing.assert_allclose(at(wsd, 1, 2, 16, 18, 20, 30), [1, 2, 2, 1.2, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(at(s.warmup_stable_decay(1.0, 100), 0, 90, 95), [1, 1, 0.5])
    momentum = at(s.cosine(0.9, 1.0, 8), -1, 0, 4, 8, 20)
    np.testing.assert_allclose(momentum, [0.9, 0.9, 0.95, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(at(s.ramp(1.0, 3.0, 4), 0, 1, 4, 9), [1, 1.5, 3, 3])


def test_schedule_errors():
    with pytest.raises(ConfigError, match="take 20 of 10 steps"):
        schedules.warmup_cosine(1.0, 10, warmup=20)
    with pytest.raises(ConfigError, match="take 12 of 10 steps"):
        schedules.warmup_stable_decay(1.0, 10, warmup=4, decay=8)
    with pytest.raises(ConfigError, match="negative"):
        schedules.constant(-1.0)
    with pytest.raises(ConfigError, match="a cosine over 0 steps"):
        schedules.cosine(0.9, 1.0, 0)
    with pytest.raises(ConfigError, match="a ramp over 0 steps"):
        schedules.ramp(0.04, 0.07, 0)
