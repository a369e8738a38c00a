"""Step time of a mixture of experts against its number of experts.

    python benchmarks/moe.py --experts 4 8 16 32 --repeats 7

One layer, forward and backward, f32: 1024 tokens, width 256, two experts a token of width 512. Each
row gives the median, its ratio to a dense gated MLP of the same active width (1024), and the time
with `jax.lax.ragged_dot`, which XLA's CPU multiplies out over all experts. The active parameters
stay the same from row to row while the total grows; what the first ratio grows by is the memory
that all experts' gradients take.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from fmjax.nn import moe
from fmjax.nn.grouped import grouped_matmul
from fmjax.nn.mlp import GatedMLP

WIDTH, INNER, CHOSEN = 256, 512, 2


def seconds(step: Callable[..., Any], params: Any, x: jax.Array, repeats: int) -> float:
    """Median of a compiled step."""
    jax.block_until_ready(step(params, x))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(step(params, x))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def step_of(layer: Any) -> Callable[..., Any]:
    def loss(params: Any, x: jax.Array) -> jax.Array:
        y = layer.apply({"params": params}, x)
        return ((y[0] if isinstance(y, tuple) else y) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), (4, 256, WIDTH))

    def measure(layer: Any) -> float:
        params = layer.init(jax.random.key(1), x)["params"]
        return seconds(step_of(layer), params, x, args.repeats)

    dense = measure(GatedMLP(CHOSEN * INNER))
    print(f"dense MLP of the active width: {dense * 1e3:.1f} ms")
    for experts in args.experts:
        times = []
        for product in (grouped_matmul, jax.lax.ragged_dot):
            moe.grouped_matmul = product
            times.append(measure(moe.SparseMoE(experts, CHOSEN, INNER)))
        ours, ragged = times
        print(
            f"{experts:3d} experts: {ours * 1e3:6.1f} ms, {ours / dense:.2f} × dense; "
            f"ragged_dot {ragged * 1e3:7.1f} ms"
        )


if __name__ == "__main__":
    main()
