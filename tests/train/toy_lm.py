"""A two-layer language model with the calling convention of fmjax models, and endless batches."""

import types

import jax
import jax.numpy as jnp
import numpy as np

V, D, T = 17, 8, 6


def apply(variables, input_ids, rngs=None):
    """input_ids [B, T] → logits [B, T, V]; has a low-rank port and, given a key, dropout."""
    p, a = variables["params"], variables.get("adapter")
    x = p["embed"]["embedding"][input_ids]
    y = x @ p["mlp"]["kernel"]
    if a:
        y += a["mlp"]["lora_scale"] * (x @ a["mlp"]["lora_a"] @ a["mlp"]["lora_b"])
    x = jnp.tanh(y + p["mlp"]["bias"]) * p["norm"]["scale"]
    if rngs:
        x *= jax.random.bernoulli(rngs["dropout"], 0.9, x.shape) / 0.9
    return types.SimpleNamespace(logits=x @ p["head"]["kernel"])


def params(seed=0):
    rng = np.random.RandomState(seed)

    def normal(*shape):
        return jnp.asarray(rng.randn(*shape) * 0.3, jnp.float32)

    return {
        "embed": {"embedding": normal(V, D)},
        "mlp": {"kernel": normal(D, D), "bias": normal(D)},
        "norm": {"scale": jnp.ones(D)},
        "head": {"kernel": normal(D, V)},
    }


def adapter(rank=2):
    return {
        "mlp": {
            "lora_a": jnp.full((D, rank), 0.1),
            "lora_b": jnp.zeros((rank, D)),
            "lora_scale": jnp.float32(2),
        }
    }


class Batches:
    """Batch k is a function of the seed and k; the position is saved as bytes."""

    def __init__(self, rows=8, seed=0):
        self.rows, self.seed, self.k = rows, seed, 0

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.RandomState((self.seed, self.k))
        self.k += 1
        return {"input_ids": rng.randint(0, V, (self.rows, T)).astype(np.int32)}

    def get_state(self):
        return {"k": str(self.k).encode()}

    def set_state(self, state):
        self.k = int(state["k"].decode())
