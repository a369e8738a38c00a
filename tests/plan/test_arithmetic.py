"""FLOPs of traced programs, against the model's arithmetic and against the compiler's count."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

import fmjax
from fmjax.objectives import CausalLM
from fmjax.plan.arithmetic import count, matmul_flops
from fmjax.train import adamw, make_step
from fmjax.train.flops import matmul_params, train_flops_per_token

B, T = 2, 64
SIZES = dict(
    hidden_size=256,
    intermediate_size=640,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=512,
)


def flops(fn: Any, *shapes: tuple[int, ...]) -> float:
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return matmul_flops(jax.make_jaxpr(fn)(*structs))


def test_products_loops_and_branches() -> None:
    once = 2 * 3 * 4 * 4
    assert flops(lambda x, w: x @ w, (3, 4), (4, 4)) == once

    def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=5)[0]

    assert flops(scanned, (3, 4), (4, 4)) == 5 * once
    # Backward: a product for x and one for w; with rematerialisation the forward one again.
    loss = lambda f: lambda x, w: jnp.sum(f(x, w))  # noqa: E731
    assert flops(jax.grad(loss(scanned), (0, 1)), (3, 4), (4, 4)) == 3 * 5 * once

    def remat(x: jax.Array, w: jax.Array) -> jax.Array:
        body = jax.checkpoint(lambda x, _: (jnp.sin(x @ w), None))
        return jax.lax.scan(body, x, None, length=5)[0]

    assert flops(jax.grad(loss(remat), (0, 1)), (3, 4), (4, 4)) == 4 * 5 * once

    def branch(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flops(branch, (3, 4), (4, 4)) == 2 * once


def test_what_nothing_depends_on_does_not_count() -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        _ = x @ w
        return x

    assert flops(fn, (3, 4), (4, 4)) == 0


def test_convolutions_count_their_kernel() -> None:
    fn = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops(fn, (1, 8, 8, 3), (3, 3, 3, 5)) == 2 * 8 * 8 * 5 * 3 * 3 * 3


def test_grouped_products_count_each_row_once() -> None:
    sizes = jnp.array([2, 4], jnp.int32)
    fn = lambda x, w: jax.lax.ragged_dot(x, w, sizes)  # noqa: E731
    assert flops(fn, (6, 4), (2, 4, 5)) == 2 * 6 * 4 * 5
    loss = lambda x, w: jnp.sum(jnp.sin(fn(x, w)))  # noqa: E731
    assert flops(jax.grad(loss, (0, 1)), (6, 4), (2, 4, 5)) == 3 * 2 * 6 * 4 * 5


def test_a_program_for_each_device_counts_on_all() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    fn = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"))
    assert flops(fn, (16, 4), (4, 4)) == 2 * 16 * 4 * 4


@pytest.mark.parametrize("stated", [None, 12345])
def test_kernels_count_what_they_state_or_their_grid(stated: int | None) -> None:
    def kernel(x: Any, w: Any, out: Any) -> None:
        out[...] = x[...] @ w[...]

    fn = pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[
            pl.BlockSpec((8, 16), lambda i: (i, 0)),
            pl.BlockSpec((16, 16), lambda i: (0, 0)),
        ],
        out_specs=pl.BlockSpec((8, 16), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
        interpret=True,
        cost_estimate=stated and pl.CostEstimate(flops=stated, transcendentals=0, bytes_accessed=0),
    )
    assert flops(fn, (32, 16), (16, 16)) == (stated or 2 * 32 * 16 * 16)


def test_blocks_that_splash_attention_skips_do_not_count() -> None:
    """It is handed which blocks of the mask are empty: here 6 of 16, the future."""

    def kernel(following: Any, blocks: Any, x: Any, w: Any, out: Any) -> None:
        @pl.when(blocks[0, pl.program_id(0), pl.program_id(1)] != 0)
        def work() -> None:
            out[...] = x[...] @ w[...]

    causal = jnp.tril(jnp.ones((1, 4, 4), jnp.int8))

    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        return pl.pallas_call(
            kernel,
            name="splash_mha_fwd",
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(4, 4),
                in_specs=[
                    pl.BlockSpec((8, 16), lambda i, j, *_: (i, 0)),
                    pl.BlockSpec((16, 16), lambda i, j, *_: (0, 0)),
                ],
                out_specs=pl.BlockSpec((8, 16), lambda i, j, *_: (i, j)),
            ),
            out_shape=jax.ShapeDtypeStruct((32, 64), jnp.float32),
            interpret=True,
        )(jnp.zeros((1, 4, 4), jnp.int8), causal, x, w)

    assert flops(fn, (32, 16), (16, 16)) == 10 * 2 * 8 * 16 * 16


def test_loops_whose_length_depends_on_data_are_counted_once_and_told() -> None:
    def fn(n: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    arguments = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((4, 4), jnp.float32)
    found = count(jax.make_jaxpr(fn)(*arguments))
    assert (found.flops, found.unknown) == (2 * 4**3, 1)


def step_of(layers: int, **execution: Any) -> tuple[Any, Any, Any, Any]:
    """(model, step, abstract state, abstract batch) of a small LLaMA on one device."""
    model = fmjax.build(
        "llama-7b", override=dict(SIZES, num_hidden_layers=layers), attention="xla", **execution
    )
    step = make_step(model, CausalLM(), adamw(1e-3))
    state = step.abstract_state({"params": fmjax.abstract_params(model)})
    return model, step, state, {"input_ids": jax.ShapeDtypeStruct((B, T), jnp.int32)}


def counted(layers: int, **execution: Any) -> float:
    _, step, state, batch = step_of(layers, **execution)
    return matmul_flops(step.trace(state, batch).jaxpr)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_training_step_costs_what_the_formula_says(layers: int) -> None:
    model, step, state, batch = step_of(layers)
    formula = train_flops_per_token(
        matmul_params(fmjax.abstract_params(model)),
        layers=layers,
        attention_width=SIZES["num_attention_heads"] * SIZES["head_dim"],
        sequence_length=T,
        causal=False,  # the reference multiplies out the whole square
    )
    norms = 2 * layers + 1  # the formula counts their scales as if they were matrices
    assert matmul_flops(step.trace(state, batch).jaxpr) == pytest.approx(
        (formula - 6 * norms * SIZES["hidden_size"]) * B * T, rel=1e-9
    )


def test_products_of_int8_operands_are_told_apart() -> None:
    """Forward and for the activations; that for the weights is not rounded."""
    pytest.importorskip("qwix")
    found = []
    for layers in (1, 2):
        _, step, state, batch = step_of(layers, matmul="int8")
        found.append(count(step.trace(state, batch).jaxpr))
    hidden, inner, head = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["head_dim"]
    heads = 2 * SIZES["num_attention_heads"] + 2 * SIZES["num_key_value_heads"]
    matrices = hidden * heads * head + 3 * hidden * inner
    assert found[1].int8 - found[0].int8 == 2 * 2 * B * T * matrices
    assert found[1].flops - found[0].flops == counted(2) - counted(1)
    _, step, state, batch = step_of(1)
    assert count(step.trace(state, batch).jaxpr).int8 == 0


def test_rematerialisation_costs_a_forward_pass_of_the_layers() -> None:
    layer = counted(2) - counted(1)
    again = counted(2, remat="full") - counted(1, remat="full") - layer
    down = 2 * B * T * SIZES["hidden_size"] * SIZES["intermediate_size"]
    # All of it but the last product, whose result the backward pass does not need.
    assert again == layer / 3 - down


@pytest.mark.optimised
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_compiler_counts_the_same_where_nothing_is_scanned(remat: str) -> None:
    """Two unrolled layers less one is a layer; elementwise work is the compiler's surplus."""

    def compiled(layers: int) -> float:
        _, step, state, batch = step_of(layers, remat=remat, scan_layers=False)
        return step.lower(state, batch).compile().cost_analysis()["flops"]

    layer = counted(2, remat=remat) - counted(1, remat=remat)
    assert layer == pytest.approx(compiled(2) - compiled(1), rel=0.1)
