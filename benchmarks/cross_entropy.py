"""Cross-entropy over a vocabulary of 128k: parts of the logits at a time, against all at once.

    JAX_PLATFORMS=cpu python benchmarks/cross_entropy.py

A head of 128 × 128256 in float32 on 2 × 512 tokens, both computed by the same model; the layer
beneath it is negligible. Prints the temporaries of the compiled gradient (MiB) and the median time
of a pass, the ways taking turns, with the head trained and frozen.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

import fmjax
from fmjax.objectives import CausalLM

CONFIG = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 128,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "head_dim": 8,
}


def gradient(model, params, chunk: int, batch, frozen: bool):
    """The compiled gradient of the loss by all parameters, or by all but the tables."""
    objective = CausalLM(chunk=chunk)
    tables = {"lm_head", "embed_tokens"}
    fixed = {name: x for name, x in params.items() if frozen and name in tables}
    trained = {name: x for name, x in params.items() if name not in fixed}

    def loss(trained, fixed):
        variables = {"params": {**trained, **fixed}}
        total, weight, *_ = objective.loss(model.apply, variables, {}, batch, jax.random.key(0))
        return total / weight

    compiled = jax.jit(jax.value_and_grad(loss)).lower(trained, fixed).compile()
    return compiled, (trained, fixed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=64)
    args = parser.parse_args()
    model = fmjax.build(CONFIG)
    params = fmjax.init_params(model, jax.random.key(0))
    shape = (args.rows, args.length)
    batch = {"input_ids": jax.random.randint(jax.random.key(1), shape, 0, 128256, jnp.int32)}
    for frozen in (False, True):
        ways = [gradient(model, params, chunk, batch, frozen) for chunk in (0, args.chunk)]
        times: list[list[float]] = [[], []]
        for _ in range(args.rounds):
            for (run, inputs), seconds in zip(ways, times, strict=True):
                begun = time.perf_counter()
                jax.block_until_ready(run(*inputs))
                seconds.append(time.perf_counter() - begun)
        sizes = [run.memory_analysis().temp_size_in_bytes / 2**20 for run, _ in ways]
        whole, parts = map(statistics.median, times)
        sizes_and_ratio = f"{sizes[0]:6.0f} → {sizes[1]:5.0f} MiB (1 : {sizes[0] / sizes[1]:.1f})"
        print(
            f"head {'frozen ' if frozen else 'trained'}  temporaries {sizes_and_ratio}  "
            f"time {whole:.2f} → {parts:.2f} s ({parts / whole:.2f} of it)",
            flush=True,
        )


if __name__ == "__main__":
    main()
