"""Merged weights compute what base and adapter compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.nn.stack import unstack


def layers_of(twin):
    return ("q_proj", "down_proj", "lm_head") if "norm" in twin.params else ("c_attn", "mlp.c_proj")


def spec_for(twin):
    names = layers_of(twin)
    return peft.LoRA(rank=3, alpha=6, targets=names, rank_pattern={f"0.*{names[0]}": 2})


def test_merged_is_unmerged(twin, kit):
    adapter = kit.trained(twin, spec_for(twin))
    before = jax.tree.map(np.array, twin.params)
    merged = peft.merge(twin.model, twin.params, adapter)
    expected = kit.logits(twin.model, twin.params, adapter)
    np.testing.assert_allclose(kit.logits(twin.model, merged, {}), expected, rtol=0, atol=kit.ATOL)
    assert np.abs(expected - kit.logits(twin.model, twin.params, {})).max() > 0.05
    assert jax.tree.all(jax.tree.map(np.array_equal, before, twin.params))
    touched = {p.rpartition("/")[0] for p in tree.flatten(adapter)}
    own = tree.flatten(twin.params)
    for path, x in tree.flatten(merged).items():
        assert (x is own[path]) == (path.rpartition("/")[0] not in touched or "bias" in path)
    back = peft.unmerge(twin.model, merged, adapter)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(twin.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_merging_agrees_with_peft(twin, kit, tmp_path):
    adapter = kit.trained(twin, spec_for(twin))
    peft.save(tmp_path / "adapter", spec_for(twin), adapter, twin.model)
    theirs = kit.in_peft(twin, tmp_path / "adapter").merge_and_unload()
    theirs.save_pretrained(tmp_path / "theirs")
    _, expected = fmjax.from_pretrained(tmp_path / "theirs")
    merged = peft.merge(twin.model, twin.params, adapter)
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_unscanned_layers_merge(twin, kit):
    adapter = kit.trained(twin, spec_for(twin))
    merged = peft.merge(twin.model, twin.params, adapter)
    model, params = fmjax.from_pretrained(twin.dir, scan_layers=False)
    name = "layers" if "norm" in twin.params else "h"
    depth = len(jax.tree.leaves(adapter[name])[0])
    apart = peft.merge(model, params, unstack(adapter, name, depth))
    expected = unstack(merged, name, depth)
    assert tree.flatten(apart).keys() == tree.flatten(expected).keys()
    for path, x in tree.flatten(apart).items():
        np.testing.assert_allclose(x, tree.flatten(expected)[path], rtol=0, atol=1e-6)


def test_the_sum_is_taken_in_float32_and_cast_back_once(llama, kit):
    adapter = kit.trained(llama, peft.LoRA(rank=4, targets=("q_proj",)))
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama.params)
    merged = peft.merge(llama.model, low, adapter)["layers"]["self_attn"]["q_proj"]["kernel"]
    own = adapter["layers"]["self_attn"]["q_proj"]
    delta = np.einsum("lir,lro,l->lio", *(own[k] for k in ("lora_a", "lora_b", "lora_scale")))
    kernel = np.asarray(low["layers"]["self_attn"]["q_proj"]["kernel"], np.float32)
    assert merged.dtype == jnp.bfloat16
    error = np.abs(np.asarray(merged, np.float32) - (kernel + delta))
    assert (error <= np.abs(kernel + delta) * 2.0**-8).all()


def test_merging_keeps_the_sharding(llama, kit):
    mesh = fmjax.make_mesh(fsdp=4, tensor=2)
    model, params = fmjax.from_pretrained(llama.dir, mesh=mesh)
    spec = peft.LoRA(rank=4, targets=("q_proj", "down_proj"))
    adapter = kit.trained(llama, spec)
    merged = peft.merge(model, params, adapter)
    expected = peft.merge(llama.model, llama.params, adapter)
    for path, x in tree.flatten(merged).items():
        assert x.sharding == tree.flatten(params)[path].sharding
        np.testing.assert_allclose(x, tree.flatten(expected)[path], rtol=0, atol=1e-6)


def test_a_table_merges_only_where_the_head_does_not_share_it(llama, gpt2, kit):
    adapter = kit.trained(llama, peft.LoRA(rank=3, targets=("embed_tokens",)))
    merged = peft.merge(llama.model, llama.params, adapter)
    np.testing.assert_allclose(
        kit.logits(llama.model, merged, {}),
        kit.logits(llama.model, llama.params, adapter),
        rtol=0,
        atol=kit.ATOL,
    )
    tied = kit.trained(gpt2, peft.LoRA(rank=3, targets=("wte",)))
    with pytest.raises(ConfigError, match="'wte' cannot be merged: 'lm_head' shares"):
        peft.merge(gpt2.model, gpt2.params, tied)
    positions = kit.trained(gpt2, peft.LoRA(rank=3, targets=("wpe",)))
    peft.merge(gpt2.model, gpt2.params, positions)


def test_adapters_that_do_not_fit(llama, gpt2, kit):
    adapter = kit.trained(llama, peft.LoRA(rank=3, targets=("q_proj",)))
    with pytest.raises(ConfigError, match="touches 'layers/self_attn/q_proj', which these params"):
        peft.merge(gpt2.model, gpt2.params, adapter)
    own = adapter["layers"]["self_attn"]["q_proj"]

    def replaced(**leaves):
        return {"layers": {"self_attn": {"q_proj": own | leaves}}}

    with pytest.raises(ConfigError, match="does not fit"):
        peft.merge(llama.model, llama.params, replaced(lora_a=own["lora_a"][:, :-1]))
    with pytest.raises(ConfigError, match="does not fit"):
        peft.merge(llama.model, llama.params, replaced(lora_b=own["lora_b"][:, :-1]))
    with pytest.raises(ConfigError, match="has .*magnitude.* and cannot be merged"):
        peft.merge(llama.model, llama.params, replaced(magnitude=own["lora_scale"]))
    with pytest.raises(ConfigError, match="is packed"):
        kernel = {"kernel": ("codes", "scales")}
        params = {"layers": {"self_attn": {"q_proj": kernel}}}
        peft.merge(llama.model, params, adapter)
