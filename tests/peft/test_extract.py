"""A LoRA out of two checkpoints: known changes come back, and the error is what is cut off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.quant import quantize

NAMES = {"llama": ("q_proj", "down_proj", "lm_head"), "gpt2": ("c_attn", "mlp.c_proj")}


def known(twin, kit, **fields):
    name = "llama" if "norm" in twin.params else "gpt2"
    spec = peft.LoRA(rank=3, alpha=1, targets=NAMES[name], **fields)
    adapter = kit.trained(twin, spec)
    return spec, adapter, peft.merge(twin.model, twin.params, adapter)


def noisy(params, seed=0, size=0.01):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + size * np.asarray(rng.normal(size=x.shape), np.float32), params
    )


def test_a_known_change_comes_back(twin, kit, tmp_path):
    first = NAMES["llama" if "norm" in twin.params else "gpt2"][0]
    spec, _, tuned = known(twin, kit, rank_pattern={f"1.*{first}": 2})
    names = spec.targets
    got, adapter, report = peft.extract(twin.model, twin.params, tuned, rank=3, targets=names)
    assert (got.rank, got.targets) == (3, tuple(n.rpartition(".")[2] for n in names)) or (
        "gpt2" in twin.model.config.model_type
    )
    merged = peft.merge(twin.model, twin.params, adapter)
    for path, x in tree.flatten(merged).items():
        np.testing.assert_allclose(x, tree.flatten(tuned)[path], rtol=0, atol=1e-5, err_msg=path)
    assert report.error() < 1e-5 and not report.lost and not report.copied
    peft.save(tmp_path, got, adapter, twin.model, params=twin.params)
    assert peft.load(tmp_path, twin.model, twin.params)[0] == got
    theirs = kit.torch_logits(kit.in_peft(twin, tmp_path))
    np.testing.assert_allclose(theirs, kit.logits(twin.model, tuned, {}), rtol=0, atol=kit.ATOL)


def test_energy_chooses_the_ranks(llama, kit):
    first = NAMES["llama"][0]
    _, _, tuned = known(llama, kit, rank_pattern={f"1.*{first}": 2})
    spec, adapter, report = peft.extract(
        llama.model, llama.params, tuned, energy=1 - 1e-9, targets=NAMES["llama"]
    )
    assert spec.rank_of("model.layers.1.self_attn.q_proj") == 2
    assert spec.rank_of("model.layers.0.self_attn.q_proj") == 3
    assert {layer.rank for layer in report.layers} == {2, 3}
    merged = peft.merge(llama.model, llama.params, adapter)
    for path, x in tree.flatten(merged).items():
        np.testing.assert_allclose(x, tree.flatten(tuned)[path], rtol=0, atol=1e-4)
    half, _, _ = peft.extract(llama.model, llama.params, tuned, energy=0.5, rank=1)
    assert half.rank == 1 and not half.rank_pattern


def test_the_error_is_what_is_cut_off(twin):
    tuned = noisy(twin.params)
    for rank in (1, 4, 32):
        spec, adapter, report = peft.extract(twin.model, twin.params, tuned, rank=rank)
        merged = tree.flatten(peft.merge(twin.model, twin.params, adapter))
        square = total = 0.0
        paths = {p for p in merged if p.endswith("/kernel") and "lm_head" not in p}
        for path in paths:
            delta = np.asarray(tree.flatten(tuned)[path] - tree.flatten(twin.params)[path])
            missed = np.asarray(tree.flatten(tuned)[path] - merged[path])
            square, total = square + np.sum(missed**2), total + np.sum(delta**2)
            for layer in range(len(delta)):
                s = np.linalg.svd(delta[layer].reshape(delta.shape[1], -1), compute_uv=False)
                error = np.linalg.norm(missed[layer])
                np.testing.assert_allclose(error, np.linalg.norm(s[rank:]), atol=1e-5)
        expected = (square / total) ** 0.5
        np.testing.assert_allclose(report.error(), expected, atol=1e-4)
        np.testing.assert_allclose(report.error(), report.error(rank), atol=1e-12)
    assert report.ranks == (1, 2, 4, 8, 16, 32)
    errors = [report.error(rank) for rank in report.ranks]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0
    assert "   8    0." in str(report) and "lost: " in str(report)


def test_what_is_no_matrix_is_copied_or_lost(llama, bert):
    tuned = noisy(llama.params)
    saves = ("embed_tokens", "norm", "lm_head")
    _, adapter, report = peft.extract(
        llama.model, llama.params, tuned, rank=2, modules_to_save=("embed_tokens", "lm_head")
    )
    assert set(report.copied) == {"embed_tokens/embedding", "lm_head/kernel"}
    assert set(report.lost) == {
        "norm/scale",
        "layers/input_layernorm/scale",
        "layers/post_attention_layernorm/scale",
    }
    change = np.linalg.norm(tuned["norm"]["scale"] - llama.params["norm"]["scale"]) / 32**0.5
    np.testing.assert_allclose(report.lost["norm/scale"], change, rtol=1e-3)
    spec, adapter, report = peft.extract(
        llama.model, llama.params, tuned, rank=32, modules_to_save=saves
    )
    assert not report.lost
    merged = peft.merge(llama.model, llama.params, adapter)
    for path, x in tree.flatten(merged).items():
        np.testing.assert_allclose(x, tree.flatten(tuned)[path], rtol=0, atol=1e-5)
    assert spec.modules_to_save == saves
    _, _, report = peft.extract(
        bert.model,
        bert.params,
        noisy(bert.params),
        rank=1,
        bias="all",
        modules_to_save=["classifier"],
    )
    assert not any("bias" in path for path in report.lost)
    assert "pooler/bias" in report.copied


def test_layers_that_did_not_change_have_no_adapter(llama):
    flat = tree.flatten(llama.params)
    path = "layers/mlp/up_proj/kernel"
    tuned = tree.unflatten(flat | {path: flat[path].at[1].add(0.1)})
    spec, adapter, report = peft.extract(llama.model, llama.params, tuned, rank=4)
    assert spec.targets == ("model.layers.1.mlp.up_proj",)
    assert set(tree.flatten(adapter)) == {
        f"layers/mlp/up_proj/lora_{leaf}" for leaf in ("a", "b", "scale")
    }
    assert sum(layer.rank for layer in report.layers) == 4


def test_a_packed_base_counts_as_what_it_stands_for(llama, kit):
    packed = tree.map_with_path(
        lambda path, w: quantize(w, "nf4", lead=1) if "_proj/kernel" in path else w, llama.params
    )
    spec, adapter, _ = peft.extract(llama.model, packed, llama.params, rank=32)
    got = kit.logits(llama.model, packed, adapter)
    np.testing.assert_allclose(got, kit.logits(llama.model, llama.params, {}), rtol=0, atol=1e-4)


def test_what_cannot_be_extracted(llama, gpt2):
    tuned = noisy(llama.params)

    def refused(said, *args, **kwargs):
        with pytest.raises(ConfigError, match=said) as e:
            peft.extract(llama.model, *args, **kwargs)
        assert "\n" not in str(e.value)

    refused("needs rank= or energy=", llama.params, tuned)
    refused("rank=0 must be", llama.params, tuned, rank=0)
    refused("energy=1.5 must be", llama.params, tuned, energy=1.5)
    refused("do not differ in any matrix of targets='all-linear'", tuned, tuned, rank=1)
    refused("the tuned params have .* of shape None where", llama.params, gpt2.params, rank=1)
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), tuned)
    refused("differ by nan or infinity", llama.params, broken, rank=1)
    wide = fmjax.build(dataclasses.replace(llama.model.config, vocab_size=70))
    other = fmjax.init_params(wide, jax.random.key(0))
    refused("the tuned params have 'embed_tokens/embedding' of shape .70, 32. where the model has "
            ".62, 32.", llama.params, other, rank=1)  # fmt: skip
    assert jnp.isfinite(tuned["norm"]["scale"]).all()
