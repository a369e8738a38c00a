"""Merged weights compute what base and adapter compute."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.nn.stack import unstack
from fmjax.quant import quantize


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
    with pytest.raises(ConfigError, match="'s magnitude .3,. does not fit"):
        peft.merge(llama.model, llama.params, replaced(magnitude=own["lora_scale"]))
    with pytest.raises(ConfigError, match="has lora_a, lora_scale and cannot be merged"):
        lone = {"q_proj": {k: own[k] for k in ("lora_a", "lora_scale")}}
        peft.merge(llama.model, llama.params, {"layers": {"self_attn": lone}})
    with pytest.raises(ConfigError, match="the adapter's ia3_in .3, 5. does not fit"):
        factors = {"q_proj": {"ia3_in": jnp.ones((3, 5))}}
        peft.merge(llama.model, llama.params, {"layers": {"self_attn": factors}})


KINDS = {
    "rslora": lambda name, m: peft.LoRA(rank=3, targets=name, use_rslora=True),
    "dora": lambda name, m: peft.LoRA(rank=3, targets=name, use_dora=True),
    "dora on some": lambda name, m: peft.LoRA(
        rank=3, targets=name[:1], use_dora=True, layers_to_transform=(1,)
    ),
    "biases": lambda name, m: peft.LoRA(rank=3, targets=name, bias="all"),
    "lora_bias": lambda name, m: peft.LoRA(rank=3, targets=name, lora_bias=True),
    "ia3": lambda name, m: peft.IA3(),
    "heads": lambda name, m: peft.LoRA(rank=3, targets=name, modules_to_save=m),
}
MODELS = {
    "llama": (("q_proj", "down_proj"), ("lm_head",)),
    "gpt2": (("c_attn", "mlp.c_proj"), ("ln_f",)),
    "bert": (("query", "output.dense"), ("classifier",)),
}


def moved(twin, spec, seed=0):
    rng = np.random.default_rng(seed)
    adapter = peft.init(jax.random.key(0), spec, twin.model, twin.params)
    flat = tree.flatten(adapter)

    def move(path, x, own):
        # Padding and layers without adapter stay zero.
        scale = flat.get(path.rpartition("/")[0] + "/lora_scale")
        on = 1 if scale is None or not own else np.asarray(scale != 0)
        noise = np.asarray(rng.normal(size=x.shape), np.float32)
        return x + 0.2 * own * noise * np.reshape(on, np.shape(on) + (1,) * (x.ndim - np.ndim(on)))

    return tree.map_with_path(move, adapter, tree.match_rules(peft.TRAINABLE, adapter))


# LLaMA's layers have no biases that the factors' could be added to.
MERGED = [(m, k) for m in MODELS for k in KINDS if (m, k) != ("llama", "lora_bias")]


@pytest.mark.parametrize(("name", "kind"), MERGED)
def test_every_kind_merges_as_in_peft(request, kit, tmp_path, name, kind):
    twin = request.getfixturevalue(name)
    targets, heads = MODELS[name]
    heads = tuple(dict.fromkeys((*heads, "classifier") if name == "bert" else heads))
    spec = KINDS[kind](targets, heads)
    if name == "bert" and kind != "heads":
        spec = dataclasses.replace(spec, modules_to_save=("classifier",))
    adapter = moved(twin, spec)
    peft.save(tmp_path / "adapter", spec, adapter, twin.model)
    theirs = kit.quiet(kit.in_peft, twin, tmp_path / "adapter").merge_and_unload()
    theirs.save_pretrained(tmp_path / "theirs")
    _, expected = fmjax.from_pretrained(tmp_path / "theirs")
    merged = peft.merge(twin.model, twin.params, adapter)
    for path, x in tree.flatten(merged).items():
        np.testing.assert_allclose(x, tree.flatten(expected)[path], rtol=0, atol=1e-6, err_msg=path)
    report = peft.merge_report(twin.model, twin.params, adapter, merged, kit.IDS)
    assert report.max_difference < 1e-4 and report.agreement == 1
    assert report.positions == (2 if name == "bert" else kit.IDS.size)
    if kind in ("rslora", "lora_bias", "ia3") and name != "bert":
        back = peft.unmerge(twin.model, merged, adapter)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(twin.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    elif "dora" in kind and name != "bert":
        with pytest.raises(ConfigError, match="DoRA's, and the norms .* keep the base's params"):
            peft.unmerge(twin.model, merged, adapter)


def test_what_no_merge_can_hold(llama, gpt2, kit):
    def refused(said, adapter, twin=llama, function=peft.merge):
        with pytest.raises(ConfigError, match=said) as e:
            function(twin.model, twin.params, adapter)
        assert "\n" not in str(e.value)

    keys = {"layers": {"self_attn": {"prefix_key": jnp.ones((3, 2, 2, 8))}}}
    refused("'layers/self_attn' is a prefix, which is no change of weights", keys)
    refused("is a prompt, which", {"embed_tokens": {"prompt": jnp.ones((2, 32))}})
    refused("is a prefix or prompt", {"encoder": {"mlp": {"kernel": jnp.ones(2)}}})
    adapter = kit.trained(llama, peft.LoRA(rank=3, targets=("q_proj",)))
    refused("is a bank of several", peft.select(peft.bank([adapter]), [1]))
    other = peft.bank(
        [{"layers": {"mlp": {"down_proj": {"ia3_in": jnp.ones((3, 48))}}}}], llama.model
    )
    refused("is a bank of several", other)
    biased = adapter["layers"]["self_attn"]["q_proj"] | {"lora_bias": jnp.ones((3, 32))}
    refused("none of its own", {"layers": {"self_attn": {"q_proj": biased}}})
    head = kit.trained(gpt2, peft.LoRA(rank=3, targets=("lm_head",)))
    refused("'wte/attend' cannot be merged: 'lm_head' shares the table", head, gpt2)
    zero = {"layers": {"mlp": {"down_proj": {"ia3_in": jnp.ones((3, 48)).at[1, 2].set(0)}}}}
    merged = peft.merge(llama.model, llama.params, zero)
    assert not merged["layers"]["mlp"]["down_proj"]["kernel"][1, 2].any()
    refused("has a factor of zero", zero, function=peft.unmerge)


@pytest.mark.parametrize("fmt", ["nf4", "int8"])
def test_packed_bases_are_merged_where_it_is_said(llama, kit, fmt):
    spec = peft.LoRA(rank=3, targets=("q_proj", "down_proj"))
    adapter = kit.trained(llama, spec)
    packed = tree.map_with_path(
        lambda path, w: quantize(w, fmt, lead=1) if "_proj/kernel" in path else w, llama.params
    )
    with pytest.raises(ConfigError, match="is packed and .* base='dequantized' .*, or the orig"):
        peft.merge(llama.model, packed, adapter)
    with pytest.raises(ConfigError, match="none of these are; leave it out"):
        peft.merge(llama.model, llama.params, adapter, base="dequantized")
    with pytest.raises(ConfigError, match="base='original' is unknown"):
        peft.merge(llama.model, packed, adapter, base="original")
    with pytest.raises(ConfigError, match="is packed: nothing was merged"):
        peft.unmerge(llama.model, packed, adapter)
    merged = peft.merge(llama.model, packed, adapter, base="dequantized")
    own = adapter["layers"]["self_attn"]["q_proj"]
    delta = np.einsum("lir,lro,l->lio", *(own[k] for k in ("lora_a", "lora_b", "lora_scale")))
    for name, expected in (("q_proj", delta), ("v_proj", 0)):
        base = packed["layers"]["self_attn"][name]["kernel"].dequantize()
        got = merged["layers"]["self_attn"][name]["kernel"]
        np.testing.assert_allclose(got, base + expected, rtol=0, atol=1e-6)
    exact = peft.merge_report(llama.model, packed, adapter, merged, kit.IDS)
    assert exact.max_difference < 1e-4 and exact.agreement == 1
    original = peft.merge(llama.model, llama.params, adapter)
    other = peft.merge_report(llama.model, packed, adapter, original, kit.IDS)
    assert other.max_difference > 10 * exact.max_difference
    assert "logits differ by at most" in str(other) and "%" in str(other)


def test_experts_and_routers_merge():
    fields = dict(model_type="mixtral", vocab_size=40, hidden_size=16, intermediate_size=12)
    fields |= dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    model = fmjax.build(fields | dict(num_local_experts=3, initializer_range=0.2))
    params = fmjax.init_params(model, jax.random.key(0))
    names = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight")
    spec = peft.LoRA(rank=2, targets=("q_proj",), target_parameters=names)
    adapter = moved(SimpleNamespace(model=model, params=params), spec)
    merged = peft.merge(model, params, adapter)
    ids = jnp.arange(10).reshape(2, 5)
    report = peft.merge_report(model, params, adapter, merged, ids)
    assert report.max_difference < 1e-4
    gate = [x["layers"]["mlp"]["experts"]["gate_proj"]["weight"] for x in (params, merged)]
    assert np.abs(gate[0] - gate[1]).max() > 0.01
