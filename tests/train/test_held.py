"""Parameters that learn later, against torch's AdamW with no gradient for them at first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from quick import QUICK

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.objectives import LAST_LAYER
from fmjax.train import adamw, held, lars, make_step, schedules

HOLD, STEPS = 4, 9
LATE = "params/head/last_layer/kernel"
SHAPES = {"params/backbone/kernel": (3, 4), LATE: (4, 5), "params/head/dense/bias": (4,)}


def draw(seed):
    rng = np.random.RandomState(seed)
    return {path: rng.randn(*shape).astype(np.float32) for path, shape in SHAPES.items()}


def run(optimizer, zeros=False):
    """{path: array} after each update; `zeros` gives held parameters no gradient at first."""
    params = tree.unflatten({path: jnp.asarray(x) for path, x in draw(0).items()})
    state = optimizer.init(params)
    update = jax.jit(optimizer.update, compiler_options=QUICK)
    for t in range(STEPS):
        grads = draw(t + 1)
        if zeros and t < HOLD:
            grads[LATE] *= 0
        updates, state = update(tree.unflatten(grads), state, params)
        params = optax.apply_updates(params, updates)
        yield tree.flatten(params)


@pytest.mark.parametrize("moment_dtype", [None, "float32"])
@pytest.mark.parametrize("zeros", [False, True])
def test_updates_are_those_of_torch_without_a_gradient(moment_dtype, zeros):
    rate = schedules.warmup_cosine(0.1, STEPS, warmup=3)
    decay = schedules.cosine(0.1, 0.4, STEPS)

    def build(start):
        return adamw(
            schedules.later(rate, start),
            b2=0.999,
            weight_decay=schedules.later(decay, start),
            moment_dtype=moment_dtype,
        )

    theirs = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in draw(0).items()}
    decayed = [x for path, x in theirs.items() if path.endswith("kernel")]
    others = [x for path, x in theirs.items() if not path.endswith("kernel")]
    reference = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.999), eps=1e-8
    )
    for t, ours in enumerate(run(held(build, LAST_LAYER, HOLD), zeros)):
        for group in reference.param_groups:
            group["lr"] = float(rate(t))
        reference.param_groups[0]["weight_decay"] = float(decay(t))
        for path, g in draw(t + 1).items():
            theirs[path].grad = None if path == LATE and t < HOLD else torch.tensor(g)
        reference.step()
        for path, x in theirs.items():
            np.testing.assert_allclose(ours[path], x.detach(), atol=1e-5, err_msg=f"{path} {t}")


def test_a_step_holds_them_and_saves_their_state_by_path():
    def apply(variables, x, rngs=None):
        params = variables["params"]
        y = x @ params["backbone"]["kernel"] + params["head"]["dense"]["bias"]
        return y @ params["head"]["last_layer"]["kernel"]

    class Squares:
        def init(self, variables):
            return {}

        def loss(self, apply, variables, extra, batch, rng):
            total = jnp.sum(jnp.square(apply(variables, batch["x"])))
            weight = jnp.float32(len(batch["x"]))
            return total, weight, {}, extra

    optimizer = held(lambda start: adamw(0.1), LAST_LAYER, 2)
    step = make_step(apply, Squares(), optimizer)
    variables = tree.unflatten({path: jnp.asarray(x) for path, x in draw(0).items()})
    state = step.init(variables, jax.random.key(0))
    batch, moved = {"x": np.ones((2, 3), np.float32)}, []
    for _ in range(3):
        state, _ = step(state, batch)
        after = tree.flatten(state.variables)
        moved.append([bool((after[path] != x).any()) for path, x in draw(0).items()])
    assert moved == [[True, False, True]] * 2 + [[True, True, True]]
    assert int(state.opt_state.count) == 3
    assert int(optax.tree.get(state.opt_state.held, "count")) == 1
    assert tree.flatten(optax.tree.get(state.opt_state.held, "mu")).keys() == {LATE}


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="held: -1 steps must not be negative"):
        held(lambda start: lars(0.1), LAST_LAYER, -1)
    with pytest.raises(ConfigError, match="no trained parameter matches 'tail'"):
        held(lambda start: lars(0.1), "tail", 1).init({"params": {"w": jnp.zeros(2)}})
    assert held(lambda start: ("built", start), LAST_LAYER, 0) == ("built", 0)
