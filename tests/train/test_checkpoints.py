import errno
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_lm
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core.errors import CheckpointError
from fmjax.core.params import ParamSpec
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import adamw, make_step
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.fingerprint import fingerprint


@pytest.fixture
def run():
    """A step, and its state after two updates."""
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
    state = step.init({"params": toy_lm.params()}, jax.random.key(1))
    batches = toy_lm.Batches()
    for _ in range(2):
        state, _ = step(state, next(batches))
    return step, state, batches


def like(step, state):
    return step.abstract_state(state.variables)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_everything_comes_back(tmp_path, run):
    step, state, batches = run
    with_best = {"loss": 1.5}
    saver = Checkpointer(tmp_path, config={"model": {"layers": 2}})
    saver.save(2, state, data=batches, metrics=with_best)
    saver.close()
    again = toy_lm.Batches()
    reader = Checkpointer(tmp_path, config={"model": {"layers": 2}})
    restored = reader.restore(like(step, state), data=again)
    reader.close()
    assert again.k == 2
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    same(restored, state)
    run_file = json.loads((tmp_path / "2" / "run" / "run.json").read_text())
    assert run_file["config"] == {"model": {"layers": 2}}


def test_saves_leave_no_threads(tmp_path, run):
    _, state, _ = run
    saver = Checkpointer(tmp_path)
    threads = []
    for number in range(4):
        saver.save(number, state)
        saver.wait()
        threads.append(threading.active_count())
    saver.close()
    assert threads[0] == threads[-1]


def test_donating_the_state_after_save_does_not_touch_what_is_written(tmp_path, run):
    step, state, batches = run
    expected = jax.device_get(state.variables)
    saver = Checkpointer(tmp_path)
    saver.save(2, state)
    for _ in range(5):
        state, _ = step(state, next(batches))
    restored = saver.restore(like(step, state))
    saver.close()
    same(restored.variables, expected)


def test_no_checkpoint(tmp_path, run):
    saver = Checkpointer(tmp_path / "new")
    assert saver.restore(like(*run[:2])) is None and saver.best_step() is None
    saver.close()


def test_keeps_the_newest_and_the_best(tmp_path, run):
    _, state, _ = run
    saver = Checkpointer(tmp_path, keep=2, best=("loss", "min"))
    for number, loss in enumerate((3.0, 1.0, 2.0, 4.0, 5.0)):
        saver.save(number, state, metrics={"loss": loss})
    saver.wait()
    assert saver.steps() == [1, 3, 4]
    saver.close()
    again = Checkpointer(tmp_path, keep=2, best=("loss", "min"))
    assert again.best_step() == 1
    again.close()


def test_another_mesh(tmp_path):
    axes = {
        "embed": {"embedding": ("vocab", "embed")},
        "mlp": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
        "norm": {"scale": ("norm",)},
        "head": {"kernel": ("embed", "vocab")},
    }
    params = toy_lm.params()
    specs = jax.tree.map(lambda x, a: ParamSpec(x.shape, x.dtype, a), params, axes)
    rules = (("batch", ("data", "fsdp")), ("embed", "fsdp"), ("mlp", "tensor"), ("vocab", None))
    rules += (("norm", None),)

    def step_on(mesh):
        return make_step(
            toy_lm.apply,
            CausalLM(),
            adamw(1e-2),
            mesh=mesh,
            rules=rules,
            abstract={"params": specs},
        )

    eight = step_on(make_mesh(data=2, fsdp=4))
    state = eight.init({"params": params}, jax.random.key(0))
    state, _ = eight(state, next(toy_lm.Batches()))
    saver = Checkpointer(tmp_path)
    saver.save(1, state)
    saver.wait()
    four = make_mesh(fsdp=2, tensor=2, data=1, devices=jax.devices()[:4])
    for mesh in (four, None):
        step = step_on(mesh)
        restored = saver.restore(step.abstract_state({"params": specs}))
        same(restored, state)
        if mesh is not None:
            kernel = restored.opt_state[0].mu["params"]["mlp"]["kernel"]
            assert kernel.sharding == NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
        step(restored, next(toy_lm.Batches()))
    saver.close()


def test_another_configuration_is_named(tmp_path, run):
    step, state, _ = run
    saver = Checkpointer(tmp_path, config={"model": {"layers": 2, "width": 8}, "steps": 10})
    saver.save(1, state)
    saver.close()
    other = {"model": {"layers": 4, "width": 8}, "steps": 20}
    reader = Checkpointer(tmp_path, config=other, free=["steps"])
    with pytest.raises(CheckpointError, match="model.layers = 2, this run has 4") as e:
        reader.restore(like(step, state))
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)
    reader.close()
    other["model"]["layers"] = 2
    reader = Checkpointer(tmp_path, config=other, free=["steps"])
    assert reader.restore(like(step, state)) is not None
    reader.close()


def test_another_shape_or_optimizer_is_named(tmp_path, run):
    step, state, _ = run
    saver = Checkpointer(tmp_path)
    saver.save(1, state)
    wide = toy_lm.params()
    wide["mlp"]["bias"] = jnp.zeros(9)
    with pytest.raises(CheckpointError, match=r"mlp/bias is float32\[8\], .* float32\[9\]"):
        saver.restore(step.abstract_state({"params": wide}))
    sgd = make_step(toy_lm.apply, CausalLM(), optax.sgd(1e-2))
    with pytest.raises(CheckpointError, match="opt_state.* this run needs none"):
        saver.restore(like(sgd, state))
    saver.close()


def test_damaged_checkpoints_are_passed_over(tmp_path, run):
    step, state, _ = run
    saver = Checkpointer(tmp_path, keep=None)
    for number in (1, 2, 3, 4):
        saver.save(number, state.replace(step=jnp.int32(number)))
    saver.close()
    shutil.rmtree(tmp_path / "4" / "state")
    for file in (tmp_path / "3" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 300:
            file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2" / "run" / "run.json").unlink()
    reader = Checkpointer(tmp_path, keep=None)
    with pytest.warns(UserWarning, match="is damaged") as seen:
        restored = reader.restore(like(step, state))
    assert int(restored.step) == 1 and len(seen) >= 3
    # The run goes on and replaces what was damaged.
    reader.save(4, state.replace(step=jnp.int32(40)))
    reader.wait()
    assert int(reader.restore(like(step, state)).step) == 40
    reader.close()
    shutil.rmtree(tmp_path / "4" / "state")
    for number in ("1", "2", "3"):
        shutil.rmtree(tmp_path / number, ignore_errors=True)
    reader = Checkpointer(tmp_path)
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="no checkpoint can be"):
        reader.restore(like(step, state))
    reader.close()


@pytest.mark.parametrize("where", ["arrays", "json"])
def test_full_disk(tmp_path, run, monkeypatch, where):
    step, state, _ = run
    saver = Checkpointer(tmp_path)
    saver.save(1, state)
    saver.wait()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        if where == "json":
            m.setattr("pathlib.Path.write_text", full)
        else:
            m.setattr("tensorstore.open", full)
        with pytest.raises(CheckpointError, match="cannot save step 2.*No space left") as e:
            saver.save(2, state)
            saver.wait()
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("2*"))
    saver.save(3, state)
    saver.wait()
    assert saver.steps() == [1, 3]
    saver.close()


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot use .*file.* for checkpoints"):
        Checkpointer(tmp_path / "file" / "checkpoints")


def test_adapter_checkpoints_hold_no_base_weights_but_know_them(tmp_path):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
    variables = {"params": toy_lm.params(), "adapter": toy_lm.adapter()}
    state = step.init(variables, jax.random.key(0))
    trained, frozen = step.split(state.variables)
    saver = Checkpointer(tmp_path, base="models/toy")
    saver.save(1, state.replace(variables=trained), frozen=frozen)
    saver.wait()
    run = json.loads((tmp_path / "1" / "run" / "run.json").read_text())
    assert run["base"] == {"path": "models/toy", "fingerprint": fingerprint(frozen)}
    saved = {path for path in run["arrays"] if path.startswith("variables")}
    assert saved == {"variables/adapter/mlp/lora_a", "variables/adapter/mlp/lora_b"}
    target = step.abstract_state(variables)
    target = target.replace(variables=step.split(target.variables)[0])
    assert saver.restore(target, frozen=frozen) is not None
    saver.close()
    reader = Checkpointer(tmp_path)
    other = {"params": toy_lm.params(seed=1), "adapter": toy_lm.adapter()}
    with pytest.raises(CheckpointError, match="other base weights .from models/toy"):
        reader.restore(target, frozen=step.split(other)[1])
    reader.close()


def test_fingerprint():
    tree = {"a": jnp.arange(24.0).reshape(4, 6), "b": jnp.ones(3, jnp.bfloat16)}
    known = fingerprint(tree)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    at = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    assert fingerprint(tree | {"a": jax.device_put(tree["a"], at)}) == known
    assert fingerprint(tree | {"a": tree["a"][::-1]}) != known
    assert fingerprint(tree | {"a": tree["a"].reshape(6, 4)}) != known
    assert fingerprint(tree | {"b": tree["b"].at[1].set(2)}) != known
    assert fingerprint({"a": tree["a"]}) != known
    assert fingerprint({"i": jnp.arange(4, dtype=jnp.int8), "m": jnp.array([True, False])})
