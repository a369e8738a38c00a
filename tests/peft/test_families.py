"""The other families' layers take PEFT's adapters and give theirs; experts are no layers."""

import jax
import numpy as np
import pytest

from fmjax import peft
from fmjax.core.errors import ConfigError

FIELDS = dict(
    vocab_size=62,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    head_dim=8,
)


def config(family):
    import transformers

    return {
        "qwen3": lambda: transformers.Qwen3Config(**FIELDS),
        "gemma2": lambda: transformers.Gemma2Config(**FIELDS, query_pre_attn_scalar=8),
        "mixtral": lambda: transformers.MixtralConfig(**FIELDS, num_local_experts=4),
    }[family]()


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mixtral"])
def test_all_linear_layers_both_ways(kit, tmp_path, family):
    twin = kit.make(config(family), tmp_path / "base")
    # PEFT's "all-linear" adapts a mixture's experts too (tests/peft/test_experts.py).
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    names = attention if family == "mixtral" else "all-linear"
    theirs = kit.peft_model(twin, r=2, target_modules=names)
    kit.quiet(theirs.save_pretrained, tmp_path / "theirs")
    spec, adapter = peft.load(tmp_path / "theirs", twin.model, twin.params)
    expected = kit.torch_logits(theirs)
    ours = kit.logits(twin.model, twin.params, adapter)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=kit.ATOL)
    spec = peft.LoRA(rank=3, targets="all-linear")
    adapter = kit.trained(twin, spec)
    peft.save(tmp_path / "ours", spec, adapter, twin.model)
    # On a Mixtral, PEFT warns of a rank_pattern that it adds itself.
    expected = kit.torch_logits(kit.quiet(kit.in_peft, twin, tmp_path / "ours"))
    ours = kit.logits(twin.model, twin.params, adapter)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=kit.ATOL)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("w1", "model.layers.0.block_sparse_moe.experts.0.w1"),
        ("gate", "model.layers.0.block_sparse_moe.gate"),
    ],
)
def test_experts_and_routers_are_no_layers(kit, tmp_path, target, name):
    twin = kit.make(config("mixtral"), tmp_path)
    with pytest.raises(ConfigError, match=f"match '{name}', which is neither a linear"):
        peft.init(jax.random.key(0), peft.LoRA(targets=(target,)), twin.model)
