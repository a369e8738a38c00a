"""What is read off compiled programs: loops, collectives, bytes moved, saved activations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fmjax.plan import hlo
from fmjax.plan.traffic import group_size, saved_activations, tally

pytestmark = pytest.mark.optimised

N = 8
ROWS, WIDTH = 64, 32


def mesh() -> Mesh:
    return jax.make_mesh((N,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def program(fn: Callable[..., Any], *arguments: tuple[Any, P], out: Any = None) -> hlo.Module:
    """The parsed program of a function of f32 arrays, each given as (shape, partition)."""
    devices = mesh()
    structs = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(devices, spec))
        for shape, spec in arguments
    ]
    shardings = None if out is None else jax.tree.map(lambda s: NamedSharding(devices, s), out)
    compiled = jax.jit(fn, out_shardings=shardings).lower(*structs).compile()
    return hlo.parse(compiled.as_text())


def manual(fn: Callable[..., Any], shape: tuple[int, ...], into: P, out: P) -> hlo.Module:
    inner = jax.shard_map(fn, mesh=mesh(), in_specs=into, out_specs=out, check_vma=False)
    return program(inner, (shape, into))


SHARD = ROWS * WIDTH * 4 // N


@pytest.mark.parametrize(
    ("kind", "fn", "out", "received"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "x", tiled=True), P(), (N - 1) * SHARD),
        ("all-reduce", lambda x: jax.lax.psum(x, "x"), P(), 2 * (N - 1) * SHARD // N),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x, "x", 1, 0, tiled=True),
            P(None, "x"),
            (N - 1) * SHARD // N,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "x", [(i, (i + 1) % N) for i in range(N)]),
            P("x"),
            SHARD,
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bytes_of_a_collective(kind: str, fn: Any, out: P, received: int) -> None:
    module = manual(fn, (ROWS, WIDTH), P("x"), out)
    assert dict(tally(module).collectives) == {kind: received}


def test_a_collective_in_a_loop_counts_as_often_as_it_runs() -> None:
    def fn(x: jax.Array) -> jax.Array:
        def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.sin(jax.lax.psum(x, "x")), None

        return jax.lax.scan(body, x, None, length=5)[0]

    once = 2 * (N - 1) * SHARD // N
    module = manual(fn, (ROWS, WIDTH), P("x"), P("x"))
    assert dict(tally(module).collectives) == {"all-reduce": 5 * once}


def test_lengths_of_nested_loops() -> None:
    def fn(x: jax.Array) -> jax.Array:
        def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.cos(x @ x), None

        def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.sin(jax.lax.scan(inner, x, None, length=3)[0]), None

        return jax.lax.scan(outer, x, None, length=7)[0]

    module = program(fn, ((WIDTH, WIDTH), P()))
    assert sorted(length for _, _, length in module.loops()) == [3, 7]


# As TPUs print loops: no stated length, the bound in the condition.
UNSTATED = """HloModule jit_f, is_scheduled=true, num_partitions=4

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %sum = f32[8,16]{1,0:T(8,128)} all-reduce(%x), replica_groups=mesh['a'=2,'b'=2] {'b'}
  ROOT %out = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%next, %sum)
}

%condition (q: (s32[], f32[8,16])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %bound = s32[]{:T(128)} constant(12)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (x0: f32[8,16]) -> f32[8,16] {
  %x0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %start = s32[]{:T(128)} constant(2)
  %fast = f32[8,16]{1,0:T(8,128)S(1)} copy(%x0)
  %init = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%start, %x0)
  %loop = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  ROOT %done = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_the_length_of_a_loop_follows_from_its_condition() -> None:
    module = hlo.parse(UNSTATED)
    assert [length for _, _, length in module.loops()] == [10]
    size = 8 * 16 * 4
    assert dict(tally(module).collectives) == {"all-reduce": 10 * size}
    # The copy into on-chip memory only reads; an all-reduce among 2 receives as much as it sends.
    assert tally(module).traffic == size + 10 * (2 * size + 3 * 4)


@pytest.mark.parametrize(("step", "rounds"), [(1, 10), (2, 5), (3, 4)])
def test_rounds_that_count_by_more_than_one(step: int, rounds: int) -> None:
    text = UNSTATED.replace("%one = s32[]{:T(128)} constant(1)", f"%one = s32[] constant({step})")
    assert [length for _, _, length in hlo.parse(text).loops()] == [rounds]


@pytest.mark.parametrize(
    ("printed", "changed"),
    [
        ("add(%i, %one)", "multiply(%i, %one)"),
        ("direction=LT", "direction=NE"),
        ("compare(%j, %bound)", "compare(%bound, %j)"),
        ("s32[]{:T(128)} constant(12)", "s32[]{:T(128)} get-tuple-element(%q), index=0"),
    ],
)
def test_a_loop_of_unknown_length_counts_once_and_is_noted(printed: str, changed: str) -> None:
    text = UNSTATED.replace(printed, changed)
    if "index=0" in changed:  # a bound that is no constant
        text = text.replace("%start = s32[]{:T(128)} constant(2)", "%start = s32[]{:T(128)} add()")
    elif "%bound, %j" in changed:  # a bound that moves
        text = text.replace("constant(2)", "partition-id()")
    module = hlo.parse(text)
    assert [length for _, _, length in module.loops()] == [None]
    assert tally(module).unknown == 1


@pytest.mark.parametrize(
    ("text", "size"),
    {
        "replica_groups={{0,1,2},{3,4,5}}": 3,
        "replica_groups=[2,4]<=[8]": 4,
        "replica_groups=[4,2]<=[2,4]T(1,0)": 2,
        "replica_groups=mesh['axis_0'=16] {'axis_0'}": 16,
        "replica_groups=mesh['a'=2,'b'=4,'c'=3] {'a','c'}": 6,
        "replica_groups=mesh['a'=8] {'a':(2)4}": 4,
        "replica_groups={}": 24,
    }.items(),
)
def test_group_sizes(text: str, size: int) -> None:
    assert group_size(f", channel_id=1, {text}, dimensions={{0}}", 24) == size


def test_traffic_of_a_loop_is_that_of_its_rounds() -> None:
    """A scan over stacked matrices reads each once, not the whole stack every round."""
    layers = 6

    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def unrolled(x: jax.Array, w: jax.Array) -> jax.Array:
        for i in range(layers):
            x = jnp.tanh(x @ w[i])
        return x

    shapes = ((ROWS, 512), P()), ((layers, 512, 512), P())
    scanned, flat = (tally(program(f, *shapes)).traffic for f in (fn, unrolled))
    stack = layers * 512 * 512 * 4
    assert stack < flat < 4 * stack
    assert 0.5 < scanned / flat < 2


def test_saved_activations_are_what_the_forward_loop_leaves() -> None:
    layers = 6

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w) @ w, None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, w)[0] ** 2)

    arguments = ((layers, WIDTH, WIDTH), P()), ((ROWS, WIDTH), P("x"))
    module = program(jax.grad(loss), *arguments)
    assert saved_activations(module) == layers * ROWS * WIDTH * 4 // N


def test_metadata_of_a_kernel_may_take_several_lines() -> None:
    kernel = """  %slow = f32[8,16]{1,0:T(8,128)} custom-call(%x0), attributes={metadata={
"block_q": 1024
}}, metadata={op_name="jit(f)/kernel"}
  %fast ="""
    module = hlo.parse(UNSTATED.replace("  %fast =", kernel))
    assert module.computations["main"].root.name == "done"
    assert module.computations["main"].instructions["slow"].op_name == "jit(f)/kernel"
    size = 8 * 16 * 4
    assert tally(module).traffic == tally(hlo.parse(UNSTATED)).traffic + 2 * size
