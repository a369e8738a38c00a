"""Optimizer state in host memory."""

import jax
import numpy as np
import pytest
import toy_lm
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core.errors import ConfigError
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import Checkpointer, adamw, averaged, make_step, with_ema

OPTIMIZER = with_ema(adamw(1e-2), 0.9)
needs_host = pytest.mark.skipif(
    all(m.kind != "pinned_host" for m in jax.local_devices()[0].addressable_memories()),
    reason="this backend has no pinned host memory",
)


def start(offload, mesh=None):
    step = make_step(toy_lm.apply, CausalLM(), OPTIMIZER, mesh=mesh, offload=offload)
    params = toy_lm.params()
    if mesh is not None:
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        split = NamedSharding(mesh, PartitionSpec("fsdp"))
        params["mlp"]["kernel"] = jax.device_put(params["mlp"]["kernel"], split)
    return step, step.init({"params": params}, jax.random.key(0))


def kinds(state):
    return {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim}


@needs_host
@pytest.mark.parametrize("sharded", [False, True])
def test_the_same_steps_from_host_memory(tmp_path, sharded):
    mesh = make_mesh(fsdp=8, data=1) if sharded else None
    plain, a = start(None, mesh)
    step, b = start("optimizer", mesh)
    assert kinds(b) == {"pinned_host"} and "pinned_host" not in kinds(a)
    batches = toy_lm.Batches()
    for _ in range(3):
        batch = next(batches)
        (a, _), (b, _) = plain(a, batch), step(b, batch)
    assert kinds(b) == {"pinned_host"}
    if sharded:
        moment = b.opt_state.inner[0].mu["params"]["mlp"]["kernel"]
        assert moment.sharding.spec == PartitionSpec("fsdp")
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6)  # noqa: E731
    jax.tree.map(close, (b.variables, b.opt_state), (a.variables, a.opt_state))
    jax.tree.map(close, averaged(b).variables, averaged(a).variables)
    saver = Checkpointer(tmp_path)
    saver.save(3, b)
    restored = saver.restore(step.abstract_state(b.variables))
    saver.close()
    assert kinds(restored) == {"pinned_host"}
    step(restored, batch)


@needs_host
def test_the_lowered_step_takes_and_gives_host_memory():
    step, state = start("optimizer")
    like = step.abstract_state(state.variables)
    text = step.lower(like, next(toy_lm.Batches())).as_text()
    moments = sum(x.ndim > 0 for x in jax.tree.leaves(like.opt_state))
    assert text.count('"pinned_host"') >= 2 * moments


def test_errors(monkeypatch):
    with pytest.raises(ConfigError, match="offload 'adam' is unknown; give 'optimizer', or None"):
        start("adam")

    class Device:
        def addressable_memories(self):
            return [type("Memory", (), {"kind": k}) for k in ("device", "unpinned_host")]

        def __str__(self):
            return "cpu:0"

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(ConfigError, match="pinned_host memory, but cpu:0 has device, unpinned_hos"):
        start("optimizer")
