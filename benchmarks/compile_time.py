"""Compile time of a training step against the depth of the model.

    python benchmarks/compile_time.py --layers 4 48 --repeats 5

Prints, for each depth, the medians of tracing, lowering and compiling a rematerialised LLaMA step
(width 256, batch 2 × 128), without the persistent compilation cache, and the ratio of the deepest
to the shallowest. Layers are scanned, so it should be close to 1 (the bound: 1.5).
"""

import argparse
import os
import statistics
import time

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import jax.numpy as jnp

import fmjax
from fmjax.objectives import CausalLM
from fmjax.train import adamw, make_step

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def seconds(layers: int, remat: str) -> tuple[float, float]:
    """(trace and lower, compile) in seconds, with every cache of JAX emptied."""
    jax.clear_caches()
    model = fmjax.build(CONFIG | {"num_hidden_layers": layers}, remat=remat)
    step = make_step(model, CausalLM(), adamw(1e-3))
    state = step.abstract_state({"params": fmjax.abstract_params(model)})
    batch = {"input_ids": jax.ShapeDtypeStruct((2, 128), jnp.int32)}
    start = time.perf_counter()
    lowered = step.lower(state, batch)
    middle = time.perf_counter()
    lowered.compile()
    return middle - start, time.perf_counter() - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 48])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--remat", default="full")
    args = parser.parse_args()
    totals = {}
    for layers in args.layers:
        runs = [seconds(layers, args.remat) for _ in range(args.repeats)]
        lower, compile_ = (statistics.median(column) for column in zip(*runs, strict=True))
        totals[layers] = statistics.median(a + b for a, b in runs)
        spread = min(map(sum, runs)), max(map(sum, runs))
        print(
            f"{layers:3d} layers: trace and lower {lower:.2f} s, compile {compile_:.2f} s, "
            f"together {totals[layers]:.2f} s (from {spread[0]:.2f} to {spread[1]:.2f})"
        )
    ratio = totals[max(args.layers)] / totals[min(args.layers)]
    print(f"{max(args.layers)} / {min(args.layers)} layers: {ratio:.2f}×")


if __name__ == "__main__":
    main()
