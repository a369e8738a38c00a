"""Products of float32 matrices by XLA and by torch: what bounds a training step on a CPU.

    python benchmarks/products.py

Printed are GFLOP/s, medians over rounds in which the libraries take turns, for the three products
of a linear layer with 1,576 rows (ViT-B/16, 8 pictures): y = x W, dx = dy Wᵀ, dW = xᵀ dy. Each call
takes a product `REPEATS` times over, into memory that is in use already, as within a step. "Eigen"
is XLA without YNNPACK's products. Needs the `test` extra (torch).
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

ROWS = 1576
FEATURES = ((768, 768), (768, 3072), (3072, 768))
REPEATS = 12
ROUNDS = 7
# The contracted dimension of each operand.
PRODUCTS = {"x W": (1, 0), "dy Wᵀ": (1, 1), "xᵀ dy": (0, 0)}
XLA: dict[str, dict[str, str]] = {
    "XLA": {},
    # What else YNNPACK does stays.
    "Eigen": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
}


def by_xla(
    a: np.ndarray, b: np.ndarray, contract: tuple[int, int], options: dict[str, str]
) -> Callable[[], Any]:
    def repeat(a: jax.Array, b: jax.Array) -> Any:
        def once(_: int, carry: Any) -> Any:
            a, y = carry
            y = jax.lax.dot_general(a, b, (([contract[0]], [contract[1]]), ((), ())))
            # A product that depended on nothing of the last one would leave the loop.
            return a.at[0, 0].set(y[0, 0] * 1e-3), y

        y = jax.eval_shape(lambda: once(0, (a, None)))[1]
        return jax.lax.fori_loop(0, REPEATS, once, (a, jax.numpy.zeros(y.shape)))

    a, b = jax.numpy.asarray(a), jax.numpy.asarray(b)
    compiled = jax.jit(repeat).lower(a, b).compile(options)
    return lambda: jax.block_until_ready(compiled(a, b))


def by_torch(a: np.ndarray, b: np.ndarray, contract: tuple[int, int]) -> Callable[[], Any]:
    left, right = torch.tensor(a), torch.tensor(b)
    left = left.T if contract[0] == 0 else left
    right = right.T if contract[1] == 1 else right
    out = torch.empty(left.shape[0], right.shape[1])

    def call() -> None:
        for _ in range(REPEATS):
            torch.mm(left, right, out=out)

    return call


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'K':>5} {'N':>5}  {'':7}" + "".join(f"{name:>7}" for name in (*XLA, "torch")))
    for K, N in FEATURES:
        x, w, dy = (rng.normal(size=s).astype("f") for s in ((ROWS, K), (K, N), (ROWS, N)))
        operands = {"x W": (x, w * 0.02), "dy Wᵀ": (dy, w * 0.02), "xᵀ dy": (x, dy)}
        for product, contract in PRODUCTS.items():
            a, b = operands[product]
            calls = {name: by_xla(a, b, contract, options) for name, options in XLA.items()}
            calls["torch"] = by_torch(a, b, contract)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(ROUNDS + 1):
                for name, call in calls.items():
                    start = time.perf_counter()
                    call()
                    if turn:
                        seconds[name].append(time.perf_counter() - start)
            work = 2 * ROWS * K * N * REPEATS / 1e9
            rates = (work / statistics.median(s) for s in seconds.values())
            print(f"{K:5} {N:5}  {product:7}" + "".join(f"{rate:7.0f}" for rate in rates))


if __name__ == "__main__":
    main()
