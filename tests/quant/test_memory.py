"""Temporaries of a QLoRA step, as the compiler counts them; nothing is allocated."""

import functools

import jax
import jax.numpy as jnp
import pytest

import fmjax
from fmjax import peft, quant
from fmjax.core import tree
from fmjax.objectives import CausalLM
from fmjax.train import adamw, make_step

pytestmark = [pytest.mark.optimised, pytest.mark.slow]

CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
BOUND = 1.25


def linear(path):
    return path.startswith("layers/") and path.endswith("/kernel")


@functools.cache
def temporaries(fmt, remat, dtype="float32"):
    """(bytes of temporaries, number of weights in linear layers) of a LoRA step, batch 2 × 64."""
    model = fmjax.build(CONFIG, dtype=dtype, param_dtype=dtype, remat=remat)
    base = fmjax.abstract_params(model)
    weights = tree.count([spec for path, spec in tree.flatten(base).items() if linear(path)])
    if fmt is not None:
        base = tree.map_with_path(lambda p, s: quant.abstract(s, fmt) if linear(p) else s, base)
    adapter = peft.abstract(peft.LoRA(8, targets="all-linear"), model)
    step = make_step(model, CausalLM(), adamw(1e-3))
    state = step.abstract_state({"params": base, "adapter": adapter})
    lowered = step.lower(state, {"input_ids": jax.ShapeDtypeStruct((2, 64), jnp.int32)})
    return lowered.compile().memory_analysis().temp_size_in_bytes, weights


@pytest.mark.parametrize(
    ("fmt", "remat"), [("nf4", "full"), ("nf4-single", "full"), ("int8", "full"), ("nf4", "none")]
)
def test_packing_adds_no_temporaries(fmt, remat) -> None:
    # In float32 on both sides. Without rematerialisation too: the products keep the packed form.
    packed, _ = temporaries(fmt, remat)
    plain, _ = temporaries(None, remat)
    assert packed < BOUND * plain, f"{packed / plain:.3f}"


def test_packing_adds_no_temporaries_to_a_bfloat16_run() -> None:
    packed, weights = temporaries("nf4", "full", "bfloat16")
    plain, _ = temporaries(None, "full", "bfloat16")
    # XLA's CPU of jax before 0.12 copies the whole bfloat16 stack to float32 before the loop: that
    # copy is the base, and not a temporary of the method.
    if plain > 4 * weights:
        plain -= 4 * weights
    assert packed < BOUND * plain, f"{packed / plain:.3f}"
