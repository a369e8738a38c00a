"""Specs, targets, shapes, starting values, padding, placement, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError, ShardingError

KEY = jax.random.key(0)


def shapes(adapter):
    return {path: x.shape for path, x in tree.flatten(adapter).items()}


def test_specs_are_values():
    a = peft.LoRA(rank_pattern={"q_proj": 2}, targets=["q_proj"], layers_to_transform=1)
    b = peft.LoRA(rank_pattern=[("q_proj", 2)], targets=("q_proj",), layers_to_transform=[1])
    assert a == b and hash(a) == hash(b)
    assert peft.LoRA(targets={"b", "a"}).targets == ("a", "b")
    assert peft.LoRA(targets="ALL-linear").targets == "all-linear"
    assert peft.LoRA(rank=4, alpha=8).scale_of("x") == 2
    assert peft.LoRA(rank=4, alpha=8, use_rslora=True).scale_of("x") == 4
    with pytest.raises(AttributeError):
        a.rank = 3


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(rank=0), "rank 0"),
        (dict(rank=2.0), "rank 2.0"),
        (dict(rank=True), "rank True"),
        (dict(rank_pattern={"q_proj": -1}), "rank -1 of 'q_proj'"),
        (dict(alpha="16"), "alpha '16'"),
        (dict(alpha=float("nan")), "alpha nan"),
        (dict(alpha_pattern={"q_proj": None}), "alpha None of 'q_proj'"),
        (dict(dropout=1.0), "dropout 1.0"),
        (dict(dropout=-0.1), "dropout -0.1"),
        (dict(targets=()), "targets is empty"),
        (dict(targets=""), "targets is empty"),
        (dict(targets=(1,)), r"targets=\(1,\) must be names"),
        (dict(targets=7), "targets=7 must be names"),
        (dict(targets="(q_proj"), r"'\(q_proj' is not a regular expression"),
        (dict(exclude="*"), "exclude: .* is not a regular expression"),
        (dict(rank_pattern={"(": 1}), "rank_pattern: .* is not a regular expression"),
        (dict(rank_pattern=3), "rank_pattern=3 must map"),
        (dict(layers_to_transform=[-1]), r"layers_to_transform=\[-1\]"),
        (dict(layers_to_transform=["a"]), "layers_to_transform"),
        (dict(targets="all-linear", layers_to_transform=0), "does not go with targets"),
        (dict(layers_pattern="layers"), "layers_pattern needs"),
    ],
)
def test_bad_specs(fields, said):
    with pytest.raises(ConfigError, match=said) as e:
        peft.LoRA(**fields)
    assert "\n" not in str(e.value)


def test_shapes_and_axes(llama, gpt2):
    spec = peft.LoRA(rank=4, targets=("q_proj", "embed_tokens", "lm_head"), dropout=0.1)
    specs = tree.flatten(peft.abstract(spec, llama.model))
    assert {path: (s.shape, s.axes) for path, s in specs.items()} == {
        "embed_tokens/lora_a": ((62, 4), ("vocab", "lora")),
        "embed_tokens/lora_b": ((4, 32), ("lora", "embed")),
        "embed_tokens/lora_scale": ((), ()),
        "layers/self_attn/q_proj/lora_a": ((3, 32, 4), ("layers", "embed", "lora")),
        "layers/self_attn/q_proj/lora_b": ((3, 4, 32), ("layers", "lora", "heads")),
        "layers/self_attn/q_proj/lora_scale": ((3,), ("layers",)),
        "layers/self_attn/q_proj/lora_dropout": ((3,), ("layers",)),
        "lm_head/lora_a": ((32, 4), ("embed", "lora")),
        "lm_head/lora_b": ((4, 62), ("lora", "vocab")),
        "lm_head/lora_scale": ((), ()),
        "lm_head/lora_dropout": ((), ()),
    }
    fused = tree.flatten(peft.abstract(peft.LoRA(rank=4, targets=["c_attn"]), gpt2.model))
    assert fused["h/attn/c_attn/lora_b"].shape == (2, 4, 3, 32)
    assert fused["h/attn/c_attn/lora_b"].axes == ("layers", "lora", "qkv", "heads")
    adapter = peft.init(KEY, spec, llama.model)
    assert shapes(adapter) == {path: s.shape for path, s in specs.items()}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(adapter))


def test_a_fresh_adapter_changes_nothing_and_is_reproducible(twin, kit):
    targets = ("embed_tokens", "q_proj") if "embed_tokens" in twin.params else ("wte", "c_attn")
    spec = peft.LoRA(rank=4, targets=targets)
    adapter = peft.init(KEY, spec, twin.model, twin.params)
    np.testing.assert_array_equal(
        kit.logits(twin.model, twin.params, adapter), kit.logits(twin.model, twin.params, {})
    )
    again = peft.init(KEY, spec, twin.model)
    other = peft.init(jax.random.key(1), spec, twin.model)
    assert jax.tree.all(jax.tree.map(np.array_equal, adapter, again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, adapter, other))
    layers = next(
        x for p, x in tree.flatten(adapter).items() if p.endswith("lora_a") and x.ndim == 3
    )
    assert not np.array_equal(layers[0], layers[1])


def test_the_start_does_not_depend_on_scanning(llama):
    spec = peft.LoRA(rank=4, targets="all-linear")
    unscanned, _ = fmjax.from_pretrained(llama.dir, scan_layers=False)
    stacked = tree.flatten(peft.init(KEY, spec, llama.model))
    apart = tree.flatten(peft.init(KEY, spec, unscanned))
    for path, x in stacked.items():
        for i in range(3):
            np.testing.assert_array_equal(x[i], apart[path.replace("layers/", f"layers_{i}/")])
    assert len(apart) == 3 * len(stacked)


def test_padding_stays_zero_in_training(llama, kit):
    import optax

    spec = peft.LoRA(
        rank=2,
        targets=("q_proj", "down_proj"),
        rank_pattern={"layers.1.self_attn.q_proj": 5},
        layers_to_transform=(0, 1),
    )
    adapter = peft.init(KEY, spec, llama.model)
    optimizer = optax.adamw(0.05, weight_decay=0.1)
    mask = tree.match_rules(peft.TRAINABLE, adapter)
    learned, fixed = tree.partition(adapter, mask)

    @jax.jit
    def step(learned, state):
        def loss(learned):
            variables = {"params": llama.params, "adapter": tree.combine(learned, fixed)}
            out = llama.model.apply(variables, input_ids=jnp.asarray(kit.IDS))
            return jnp.mean(jax.nn.logsumexp(out.logits, -1) - out.logits[..., 0])

        updates, state = optimizer.update(jax.grad(loss)(learned), state, learned)
        return optax.apply_updates(learned, updates), state

    start, state = learned, optimizer.init(learned)
    for _ in range(4):
        learned, state = step(learned, state)
    ranks = {"layers/self_attn/q_proj": (2, 5, 0), "layers/mlp/down_proj": (2, 2, 0)}
    flat, before = tree.flatten(learned), tree.flatten(start)
    for module, own in ranks.items():
        a, b = flat[f"{module}/lora_a"], flat[f"{module}/lora_b"]
        for layer, rank in enumerate(own):
            assert not a[layer, :, rank:].any() and not b[layer, rank:].any()
            assert jnp.abs(b[layer, :rank]).min(initial=1) > 0
        assert not np.array_equal(a, before[f"{module}/lora_a"])
    assert "layers/self_attn/q_proj/lora_scale" not in flat


def test_dropout_is_on_the_branch_and_only_while_training(llama, kit):
    spec = peft.LoRA(rank=4, targets="all-linear", dropout=0.5)
    plain = peft.LoRA(rank=4, targets="all-linear")
    adapter, without = kit.trained(llama, spec), kit.trained(llama, plain)
    ids = jnp.asarray(kit.IDS)

    @jax.jit
    def compute(adapter, rngs):
        variables = {"params": llama.params, "adapter": adapter}
        return llama.model.apply(variables, input_ids=ids, rngs=rngs).logits

    def run(adapter, seed=None):
        return np.asarray(
            compute(adapter, None if seed is None else {"dropout": jax.random.key(seed)})
        )

    np.testing.assert_array_equal(run(adapter), run(without))
    assert np.abs(run(adapter, 0) - run(adapter)).max() > 0.01
    assert np.abs(run(adapter, 0) - run(adapter, 1)).max() > 0.01
    np.testing.assert_array_equal(run(without, 0), run(without))
    # The base sees no dropout: a fresh branch, which adds nothing, drops nothing.
    fresh = peft.init(KEY, spec, llama.model)
    np.testing.assert_array_equal(run(fresh, 0), run({}))
    # In the mean over masks the branch is what it is without dropout: layer-local check.
    layer = fmjax.nn.dense.Dense(3, ("embed", "mlp"))
    rng = np.random.default_rng(0)
    own = {
        "lora_a": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
        "lora_b": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
        "lora_scale": jnp.float32(1),
        "lora_dropout": jnp.float32(0.5),
    }
    x = jnp.asarray(rng.normal(size=(1, 8)), jnp.float32)
    variables = {"params": {"kernel": jnp.zeros((8, 3))}, "adapter": own}
    keys = jax.random.split(KEY, 4000)
    many = jax.jit(jax.vmap(lambda k: layer.apply(variables, x, rngs={"dropout": k})))(keys)
    np.testing.assert_allclose(many.mean(0), layer.apply(variables, x), atol=0.3)


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(targets=("c_attn",)), "match no layer of this llama model; choose from .*q_proj"),
        (dict(targets="model.layers.*nothing"), "match no layer"),
        (dict(targets=("q_proj",), exclude=("self_attn.q_proj",)), "match no layer"),
        (dict(targets=("q_proj", "qproj")), "targets 'qproj' matches no"),
        (dict(targets=("proj",)), "match no layer"),
        (dict(targets=("norm",)), "match 'model.norm', which is neither a linear"),
        (dict(targets=("mlp",)), "match 'model.layers.0.mlp', which is neither"),
        (dict(targets=".*"), "which is neither a linear"),
        (dict(exclude=("k_porj",)), "exclude 'k_porj' matches no"),
        (dict(rank_pattern={"k_proj": 2}), "rank_pattern 'k_proj' matches no adapted"),
        (dict(alpha_pattern={"layers.7.q_proj": 2}), "alpha_pattern 'layers.7.q_proj'"),
        (dict(layers_to_transform=(0, 3)), "layers_to_transform 3 matches no"),
        (dict(layers_to_transform=0, layers_pattern="h"), "match no layer"),
    ],
)
def test_specs_that_do_not_fit_the_model(llama, fields, said):
    with pytest.raises(ConfigError, match=said) as e:
        peft.init(KEY, peft.LoRA(**fields), llama.model)
    assert "\n" not in str(e.value)


def test_a_tied_head_has_an_adapter_of_its_own(gpt2):
    adapter = peft.init(KEY, peft.LoRA(targets=("c_attn", "lm_head")), gpt2.model)
    assert adapter["wte"].keys() == {"attend"}
    spec = peft.LoRA(targets=r".*c_attn|lm_head", exclude=("lm_head",))
    assert "wte" not in peft.init(KEY, spec, gpt2.model)
    assert "wte" not in peft.init(KEY, peft.LoRA(targets="all-linear"), gpt2.model)


def test_only_specs_are_specs(llama):
    with pytest.raises(ConfigError, match="is not an adapter spec"):
        peft.init(KEY, {"rank": 8}, llama.model)
    with pytest.raises(ConfigError, match="is not an adapter spec"):
        peft.count("lora", llama.model)


def test_adapters_lie_like_their_kernels(llama):
    mesh = fmjax.make_mesh(fsdp=2, tensor=2, data=2)
    spec = peft.LoRA(rank=4, targets=("q_proj", "o_proj"))
    _, params = fmjax.from_pretrained(llama.dir, mesh=mesh)
    by_rules = peft.init(KEY, spec, llama.model, mesh=mesh)
    by_params = peft.init(KEY, spec, llama.model, params)
    q, o = (by_rules["layers"]["self_attn"][p] for p in ("q_proj", "o_proj"))
    assert q["lora_a"].sharding == NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    assert q["lora_b"].sharding == NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
    assert o["lora_a"].sharding == NamedSharding(mesh, PartitionSpec(None, "tensor", None))
    for a, b in zip(jax.tree.leaves(by_rules), jax.tree.leaves(by_params), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        np.testing.assert_array_equal(a, b)
    single = peft.init(KEY, spec, llama.model)
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(by_rules), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ShardingError, match="lora"):
        peft.init(KEY, spec, llama.model, mesh=mesh, rules=[("layers", None), ("embed", "fsdp")])


@pytest.mark.optimised
def test_init_holds_no_base_weight(llama):
    spec = peft.LoRA(rank=2, targets="all-linear")
    made = jax.jit(lambda k, p: peft.init(k, spec, llama.model, p)).lower(KEY, llama.params)
    memory = made.compile().memory_analysis()
    adapter = peft.abstract(spec, llama.model)
    own = sum(4 * int(np.prod(s.shape)) for s in tree.flatten(adapter).values())
    assert own <= memory.output_size_in_bytes <= own + 64 * len(tree.flatten(adapter))
    assert memory.argument_size_in_bytes < 64
    assert memory.temp_size_in_bytes < 2 * own
    assert peft.count(spec, llama.model) == own // 4 - 7 * 3  # but for the scales
