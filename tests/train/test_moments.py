"""Moments in fewer bytes, against bitsandbytes on the CPU and against plain NumPy."""

import bitsandbytes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import toy_lm
from bitsandbytes.functional import create_dynamic_map
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core.errors import ConfigError
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import Checkpointer, adamw, compact_adamw, make_step, moments

BOTH = pytest.mark.parametrize("signed", [True, False])


def nearest(x, signed):
    """Indices of the nearest values of the map; x NumPy in [−1, 1]."""
    table = create_dynamic_map(signed).numpy().astype(np.float64)
    return np.searchsorted((table[1:] + table[:-1]) / 2, x)


@BOTH
def test_the_map_is_that_of_bitsandbytes(signed):
    table = create_dynamic_map(signed).numpy()
    values = moments._values(jnp.arange(256.0), signed)
    np.testing.assert_allclose(values, table, rtol=2e-7, atol=0)
    np.testing.assert_array_equal(moments._codes(jnp.asarray(table), signed), np.arange(256))


@BOTH
@pytest.mark.parametrize("side", [-1e-6, 1e-6])
def test_the_nearest_value_is_chosen_on_both_sides_of_every_midpoint(signed, side):
    table = create_dynamic_map(signed).numpy().astype(np.float64)
    middle = (table[1:] + table[:-1]) / 2
    x = (middle + side * np.abs(middle)).astype(np.float32)
    expected = nearest(x.astype(np.float64), signed)
    np.testing.assert_array_equal(moments._codes(jnp.asarray(x), signed), expected)


@BOTH
@pytest.mark.parametrize("shape", [(2, 16, 64), (3, 512), (5, 2, 128), (1024,)])
def test_blocks_are_those_of_the_flattened_array(signed, shape):
    x = np.random.RandomState(0).randn(*shape).astype(np.float32) ** 3
    x = x if signed else np.abs(x)
    packed = moments.quantize(jnp.asarray(x), signed)
    flat = x.reshape(-1, 256)
    np.testing.assert_array_equal(packed.absmax.reshape(-1), np.abs(flat).max(1))
    codes = nearest(flat / np.abs(flat).max(1, keepdims=True), signed)
    np.testing.assert_array_equal(packed.codes.reshape(-1, 256), codes)
    expected = torch.ops.bitsandbytes.dequantize_blockwise(
        torch.tensor(np.asarray(packed.codes)), torch.tensor(np.asarray(packed.absmax).reshape(-1)),
        create_dynamic_map(signed), 256, torch.float32,
    )  # fmt: skip
    np.testing.assert_allclose(moments.dequantize(packed), expected.numpy(), rtol=1e-6)


def test_sizes_that_blocks_do_not_divide():
    x = jnp.asarray(np.random.RandomState(0).randn(7, 300, 5), jnp.float32)
    packed = moments.quantize(x, True)
    assert packed.codes.shape == x.shape and packed.absmax.shape == (7, 6, 1)
    np.testing.assert_array_equal(packed.absmax[:, 5, 0], jnp.abs(x[:, 255:]).max((1, 2)))
    assert float(jnp.abs(moments.dequantize(packed) - x).max()) < 0.03  # 0.9 / 64 / 2 of 3.5.
    nothing = moments.quantize(jnp.zeros((4, 256)), True)
    np.testing.assert_array_equal(moments.dequantize(nothing), 0)


def run(optimizer, start, grads, dtype=jnp.float32):
    params = {"kernel": jnp.asarray(start, dtype)}
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update({"kernel": jnp.asarray(g, dtype)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"], np.float32), state


def torch_run(cls, start, grads, **kwargs):
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = cls([p], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, **kwargs)
    for g in grads:
        p.grad = torch.tensor(g)
        optimizer.step()
    return p.detach().numpy(), optimizer.state[p]


def problem(shape, steps=4):
    rng = np.random.RandomState(0)
    draw = lambda: rng.randn(*shape).astype(np.float32)  # noqa: E731
    return draw(), [
        draw() * 10 ** rng.uniform(-3, 0, shape).astype(np.float32) for _ in range(steps)
    ]


def ours(moment_dtype, **kwargs):
    return adamw(1e-2, b2=0.99, weight_decay=0.1, moment_dtype=moment_dtype, **kwargs)


@pytest.mark.parametrize("shape", [(24, 256), (3, 32, 64)])
def test_int8_steps_are_those_of_bitsandbytes(shape, monkeypatch):
    # Its CPU kernel does not choose the nearest code everywhere; the formula of its other backends
    # does.
    def exactly(x, code, absmax_out, out, blocksize):
        blocks = x.reshape(-1, blocksize)
        absmax = blocks.abs().amax(1)
        bounds = (code[1:] + code[:-1]) / 2
        out.copy_(
            torch.bucketize(blocks / absmax[:, None], bounds).to(torch.uint8).reshape(x.shape)
        )
        absmax_out.copy_(absmax)

    monkeypatch.setattr("bitsandbytes.backends.cpu.ops._quant_blockwise_fp32_direct", exactly)
    monkeypatch.setattr(compact_adamw, "SLICE", 1)
    start, grads = problem(shape)
    expected, reference = torch_run(bitsandbytes.optim.AdamW8bit, start, grads)
    got, state = run(ours("int8"), start, grads)
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)
    for moment, name in ((state.mu, "1"), (state.nu, "2")):
        np.testing.assert_array_equal(moment["kernel"].codes, reference["state" + name].numpy())
        absmax = np.asarray(moment["kernel"].absmax).reshape(-1)
        np.testing.assert_allclose(absmax, reference["absmax" + name].numpy(), rtol=1e-6)


def test_small_leaves_keep_float32_moments():
    start, grads = problem((15, 256))
    got, state = run(ours("int8"), start, grads)
    assert state.mu["kernel"].dtype == jnp.float32
    expected, _ = torch_run(torch.optim.AdamW, start, grads)
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


def test_layer_by_layer_is_all_at_once(monkeypatch):
    start, grads = problem((4, 32, 64))
    whole, a = run(ours("int8"), start, grads)
    monkeypatch.setattr(compact_adamw, "SLICE", 1)
    sliced, b = run(ours("int8"), start, grads)
    np.testing.assert_allclose(sliced, whole, atol=1e-6)
    np.testing.assert_array_equal(a.mu["kernel"].codes, b.mu["kernel"].codes)


def test_float32_moments_of_bfloat16_parameters():
    start, grads = problem((8, 64))
    start, *grads = (np.asarray(jnp.bfloat16(x), np.float32) for x in (start, *grads))
    got, state = run(ours("float32"), start, grads, jnp.bfloat16)
    assert {x.dtype.name for x in (state.mu["kernel"], state.nu["kernel"])} == {"float32"}
    m = v = 0
    p = jnp.asarray(start, jnp.bfloat16)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        p = p + jnp.asarray(-1e-2 * (step + 0.1 * np.asarray(p, np.float32)), jnp.bfloat16)
    np.testing.assert_allclose(state.nu["kernel"], v, rtol=1e-5)
    np.testing.assert_array_equal(got, np.asarray(p, np.float32))


def test_float32_parameters_and_moments_are_the_defaults():
    start, grads = problem((8, 64))
    schedule = lambda count: 1e-2 / (count + 1)  # noqa: E731
    got, _ = run(adamw(schedule, moment_dtype="float32"), start, grads)
    expected, _ = run(adamw(schedule), start, grads)
    np.testing.assert_allclose(got, expected, atol=1e-7, rtol=0)


def test_bfloat16_second_moments_can_fall():
    start = np.zeros((64, 64), np.float32)
    grads = [np.ones_like(start)] + [np.zeros_like(start)] * 300
    optimizer = adamw(1e-3, b2=0.999, moment_dtype="bfloat16")
    update = jax.jit(optimizer.update)
    params = {"kernel": jnp.asarray(start)}
    state = optimizer.init(params)
    for g in grads:
        _, state = update({"kernel": jnp.asarray(g)}, state, params)
    assert state.mu["kernel"].dtype == state.nu["kernel"].dtype == jnp.bfloat16
    mean = float(state.nu["kernel"].astype(jnp.float32).mean())
    # To the nearest it would stand still: half a unit is 0.2 %, the decay 0.1 %.
    np.testing.assert_allclose(mean, 1e-3 * 0.999**300, rtol=2e-3)


def test_stochastic_rounding_is_without_bias_and_exact_where_it_can_be():
    x = jnp.full((1 << 14,), 1 + 1 / 512, jnp.float32)  # A quarter of the way to 1 + 1/128.
    rounded = moments.stochastic_bfloat16(x, jnp.uint32(7)).astype(jnp.float32)
    assert set(np.unique(rounded)) == {1.0, 1 + 1 / 128}
    np.testing.assert_allclose(rounded.mean(), x[0], atol=3e-4)
    exact = jnp.asarray([0.0, -2.5, 1e-30], jnp.bfloat16)
    again = moments.stochastic_bfloat16(exact.astype(jnp.float32), jnp.uint32(1))
    np.testing.assert_array_equal(again, exact)


def test_training_with_int8_moments_follows_that_with_float32(monkeypatch):
    monkeypatch.setattr(compact_adamw, "MIN_INT8", 1)
    losses = {}
    for dtype in ("float32", "bfloat16", "int8"):
        step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2, moment_dtype=dtype))
        state = step.init({"params": toy_lm.params()}, jax.random.key(0))
        batches, losses[dtype] = toy_lm.Batches(), []
        batch = next(batches)
        for _ in range(40):
            state, metrics = step(state, batch)
            losses[dtype].append(float(metrics["loss"]))
    assert losses["float32"][-1] < 0.7 * losses["float32"][0]
    np.testing.assert_allclose(losses["int8"], losses["float32"], rtol=0.03)
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)


def sharded(mesh, partition):
    """A step over one kernel [4, 64, 512], and its state on the mesh."""

    class Square:
        def init(self, variables):
            return {}

        def loss(self, apply, variables, extra, batch, rng):
            kernel = variables["params"]["kernel"]
            return jnp.sum(jnp.square(kernel)) * batch["x"].mean(), jnp.float32(1), {}, extra

    step = make_step(lambda: None, Square(), adamw(1e-2, moment_dtype="int8"), mesh=mesh)
    kernel = np.random.RandomState(0).randn(4, 64, 512).astype(np.float32)
    kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*partition)))
    return step, step.init({"params": {"kernel": kernel}}, jax.random.key(0))


@pytest.mark.optimised
@pytest.mark.parametrize("slice_", [1, 1 << 20])
def test_shards_and_checkpoints_of_int8_moments(tmp_path, slice_, monkeypatch):
    monkeypatch.setattr(compact_adamw, "SLICE", slice_)
    batch = {"x": np.ones(8, np.float32)}
    step, state = sharded(make_mesh(fsdp=4, tensor=2, data=1), (None, "fsdp", "tensor"))
    one, alone = sharded(make_mesh(data=1, devices=jax.devices()[:1]), ())
    program = step.lower(state, batch).compile().as_text()
    assert "all-gather" not in program and "all-to-all" not in program
    for _ in range(2):
        state, _ = step(state, batch)
        alone, _ = one(alone, batch)
    moment = state.opt_state.mu["params"]["kernel"]
    assert moment.codes.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert moment.absmax.shape == (4, 64, 2)
    assert moment.absmax.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    saver = Checkpointer(tmp_path)
    saver.save(2, state)
    # Four shards of the last axis would cut the blocks: their scales are on every device there.
    other, fresh = sharded(make_mesh(fsdp=2, tensor=4, data=1), (None, "fsdp", "tensor"))
    state = saver.restore(other.abstract_state(fresh.variables))
    saver.close()
    assert state.opt_state.mu["params"]["kernel"].absmax.sharding.spec == PartitionSpec(
        None, "fsdp", None
    )
    state, _ = other(state, batch)
    alone, _ = one(alone, batch)
    kernels = (x.variables["params"]["kernel"] for x in (state, alone))
    np.testing.assert_allclose(*kernels, atol=1e-6, rtol=0)


@pytest.mark.optimised
def test_a_stage_updates_its_own_layers_one_by_one(monkeypatch):
    monkeypatch.setattr(compact_adamw, "SLICE", 1)
    batch = {"x": np.ones(8, np.float32)}
    mesh = make_mesh(stage=2, fsdp=2, tensor=2, data=1)
    step, state = sharded(mesh, ("stage", "fsdp", "tensor"))
    one, alone = sharded(make_mesh(data=1, devices=jax.devices()[:1]), ())
    program = step.lower(state, batch).compile().as_text()
    assert "all-gather" not in program and "while" in program
    for _ in range(2):
        state, _ = step(state, batch)
        alone, _ = one(alone, batch)
    kernels = (x.variables["params"]["kernel"] for x in (state, alone))
    np.testing.assert_allclose(*kernels, atol=1e-6, rtol=0)
    moments = (x.opt_state.mu["params"]["kernel"] for x in (state, alone))
    np.testing.assert_array_equal(*(np.asarray(m.codes) for m in moments))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        (
            {"moment_dtype": "int4"},
            "moment_dtype 'int4' is unknown; one of float32, bfloat16, int8",
        ),
        ({"moment_dtype": "int8", "mu_dtype": "bfloat16"}, "leave mu_dtype away"),
    ],
)
def test_errors(kwargs, text):
    with pytest.raises(ConfigError, match=text):
        adamw(1e-3, **kwargs)
