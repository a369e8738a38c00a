"""Sums, multiples and mixtures of adapters, against what their matrices say and against PEFT."""

import dataclasses

import jax
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.peft import algebra

NAMES = {"llama": ("q_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_proj")}


def changes(twin, adapter):
    """{path: what the adapter adds to the parameter}."""
    merged = tree.flatten(peft.merge(twin.model, twin.params, adapter))
    return {p: np.asarray(merged[p]) - x for p, x in tree.flatten(twin.params).items()}


def pairs_of(twin, kit):
    first, second = NAMES["llama" if "norm" in twin.params else "gpt2"]
    specs = (
        peft.LoRA(rank=3, alpha=6, targets=(first,), rank_pattern={f"1.*{first}": 2}),
        peft.LoRA(rank=4, alpha=2, targets=(first, second), layers_to_transform=(0, 1)),
    )
    return [(spec, kit.trained(twin, spec)) for spec in specs]


def close(got, expected, atol=1e-5):
    assert got.keys() == expected.keys()
    for path, x in got.items():
        np.testing.assert_allclose(x, expected[path], rtol=0, atol=atol, err_msg=path)


def test_sums_are_exact_and_filed(twin, kit, tmp_path):
    pairs = pairs_of(twin, kit)
    parts = [changes(twin, adapter) for _, adapter in pairs]
    spec, adapter = peft.combine(twin.model, pairs, [0.5, -2.0])
    expected = {p: 0.5 * x - 2.0 * parts[1][p] for p, x in parts[0].items()}
    close(changes(twin, adapter), expected)
    assert spec.rank_of("x.layers.5.nothing") == spec.rank and spec.scale_of("x") == 1
    peft.save(tmp_path, spec, adapter, twin.model, params=twin.params)
    again, loaded = peft.load(tmp_path, twin.model, twin.params)
    assert again == spec
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, adapter))
    theirs = kit.torch_logits(kit.in_peft(twin, tmp_path))
    np.testing.assert_allclose(
        theirs, kit.logits(twin.model, twin.params, adapter), rtol=0, atol=kit.ATOL
    )
    total = {p: x + parts[1][p] for p, x in parts[0].items()}
    close(changes(twin, peft.add(twin.model, *pairs)[1]), total)
    between = {p: 0.75 * x + 0.25 * parts[1][p] for p, x in parts[0].items()}
    close(changes(twin, peft.interpolate(twin.model, *pairs, 0.25)[1]), between)


def test_multiples_keep_the_factors(twin, kit, tmp_path):
    (spec, adapter), _ = pairs_of(twin, kit)
    scaled, other = peft.scale(twin.model, spec, adapter, -0.5)
    assert scaled == dataclasses.replace(spec, alpha=-3.0)
    close(changes(twin, other), {p: -0.5 * x for p, x in changes(twin, adapter).items()})
    for path, x in tree.flatten(other).items():
        if not path.endswith("lora_scale"):
            np.testing.assert_array_equal(x, tree.flatten(adapter)[path])
    peft.save(tmp_path, scaled, other, twin.model)
    assert peft.load(tmp_path, twin.model)[0] == scaled


def test_recompression_is_the_nearest_of_its_rank(twin, kit):
    pairs = pairs_of(twin, kit)
    exact = changes(twin, peft.add(twin.model, *pairs)[1])
    spec, adapter = peft.add(twin.model, *pairs, method="svd", rank=2)
    assert spec.rank == 2 and not spec.rank_pattern
    got = changes(twin, adapter)
    for path, x in exact.items():
        if not x.any():
            continue
        for layer, own in zip(x, got[path], strict=True):
            s = np.linalg.svd(layer.reshape(len(layer), -1), compute_uv=False)
            error = np.linalg.norm(layer - own)
            np.testing.assert_allclose(error, np.linalg.norm(s[2:]), rtol=1e-3, atol=1e-5)
    whole = peft.add(twin.model, *pairs, method="svd", rank=7)[1]
    close(changes(twin, whole), exact)
    assert peft.add(twin.model, *pairs, method="svd")[0].rank == 4


@pytest.mark.parametrize("method", algebra.METHODS)
def test_methods_are_those_of_peft(twin, kit, tmp_path, method):
    from peft import PeftModel

    names = NAMES["llama" if "norm" in twin.params else "gpt2"]
    spec = peft.LoRA(rank=3, alpha=6, targets=names)
    pairs = [(spec, kit.trained(twin, spec)), (spec, kit.trained(twin, spec))]
    pairs[1] = (spec, jax.tree.map(lambda x: x if x.ndim < 2 else x[..., ::-1], pairs[1][1]))
    weights = [0.75, -0.5]
    for i, (_, adapter) in enumerate(pairs):
        peft.save(tmp_path / str(i), spec, adapter, twin.model)
    theirs = kit.quiet(PeftModel.from_pretrained, twin.reference(), tmp_path / "0", "a")
    kit.quiet(theirs.load_adapter, tmp_path / "1", "b")
    options = {"svd_rank": 2} if method == "svd" else {}
    kit.quiet(
        *(theirs.add_weighted_adapter, ["a", "b"], weights, "both"),
        combination_type=method,
        **options,
    )
    theirs.set_adapter("both")
    rank = 2 if method == "svd" else None
    _, adapter = peft.combine(twin.model, pairs, weights, method=method, rank=rank)
    kit.quiet(theirs.merge_and_unload().save_pretrained, tmp_path / "merged")
    _, expected = fmjax.from_pretrained(tmp_path / "merged")
    merged = peft.merge(twin.model, twin.params, adapter)
    close(tree.flatten(merged), tree.flatten(expected), 2e-5)


def test_copies_are_differences_from_the_base(bert, kit):
    def make(targets, seed, **fields):
        spec = peft.LoRA(rank=2, targets=targets, **fields)
        adapter = kit.trained(bert, spec)
        rng = np.random.default_rng(seed)
        flat = {
            p: x if "lora" in p else x + np.asarray(rng.normal(size=x.shape), np.float32)
            for p, x in tree.flatten(adapter).items()
        }
        return spec, tree.unflatten(flat)

    first = make(("query",), 1, modules_to_save=("classifier",))
    second = make(("key",), 2, bias="all", modules_to_save=("pooler",))
    with pytest.raises(ConfigError, match="are mixed as differences from the base's; pass params="):
        peft.combine(bert.model, [first, second], [0.5, 0.25])
    spec, adapter = peft.combine(bert.model, [first, second], [0.5, 0.25], params=bert.params)
    assert spec.modules_to_save == ("classifier", "pooler") and spec.bias == "all"
    assert spec.targets == ("query", "key")
    parts = [changes(bert, adapter) for _, adapter in (first, second)]
    close(changes(bert, adapter), {p: 0.5 * x + 0.25 * parts[1][p] for p, x in parts[0].items()})
    # Weights that sum to 1 need no base where all have the copy.
    third = make(("query",), 3, modules_to_save=("classifier",))
    _, adapter = peft.interpolate(bert.model, first, third, 0.25)
    parts = [changes(bert, x) for _, x in (first, third)]
    close(changes(bert, adapter), {p: 0.75 * x + 0.25 * parts[1][p] for p, x in parts[0].items()})
    half = peft.scale(bert.model, *first, 0.5, params=bert.params)
    close(changes(bert, half[1]), {p: 0.5 * x for p, x in changes(bert, first[1]).items()})


def test_what_cannot_be_added(llama, kit):
    pairs = pairs_of(llama, kit)

    def refused(said, function, *args, **kwargs):
        with pytest.raises(ConfigError, match=said) as e:
            function(llama.model, *args, **kwargs)
        assert "\n" not in str(e.value)

    refused("2 adapters have 1 weights", peft.combine, pairs, [1.0])
    refused("0 adapters have 0", peft.add)
    refused("method='ties' is unknown; choose one of cat, svd", peft.add, *pairs, method="ties")
    refused("goes with method='svd'", peft.add, *pairs, rank=2)
    refused("rank=0 must be a positive", peft.add, *pairs, method="svd", rank=0)
    refused("weight nan", peft.combine, pairs, [1.0, float("nan")])
    refused("weight inf", peft.scale, *pairs[0], float("inf"))
    refused("the ranks .3, 4. at '.*', and method='linear'", peft.add, *pairs, method="linear")
    for field in ("use_dora", "lora_bias"):
        spec = dataclasses.replace(pairs[0][0], **{field: True})
        refused(f"with {field} is no multiple .* merge it", peft.add, (spec, pairs[0][1]))
    refused("IA3 adapters cannot be added", peft.add, (peft.IA3(), {}))
    refused("lacks 'layers/self_attn/q_proj/lora_a'", peft.add, (pairs[0][0], {}))
