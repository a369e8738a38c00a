"""Low-rank factors on a mixture's experts and router, as PEFT puts them on parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.peft import lora_math

KEY = jax.random.key(0)
FIELDS = dict(
    vocab_size=62,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    head_dim=8,
    num_local_experts=4,
)
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
ROUTER = "mlp.gate.weight"


@pytest.fixture(scope="module")
def mixtral(kit, tmp_path_factory):
    from transformers import MixtralConfig

    return kit.make(MixtralConfig(**FIELDS), tmp_path_factory.mktemp("mixtral"))


CASES = {
    "experts": dict(target_modules=[], target_parameters=list(EXPERTS)),
    "gate and up": dict(target_modules=["q_proj"], target_parameters=[EXPERTS[0]]),
    "down": dict(target_modules=[], target_parameters=["experts.down_proj"], use_rslora=True),
    "router": dict(target_modules=["v_proj"], target_parameters=[ROUTER]),
    "ranks": dict(
        target_modules=["o_proj"],
        target_parameters=[*EXPERTS, ROUTER],
        rank_pattern={r"layers\.1\.mlp\.experts\.gate_up_proj": 5, "gate.weight": 1},
        alpha_pattern={"down_proj": 3},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_both_ways_and_backward(mixtral, kit, tmp_path, case):
    kit.exchange(mixtral, kit.peft_model(mixtral, r=2, lora_alpha=5, **CASES[case]), tmp_path)
