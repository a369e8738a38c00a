"""DoRA computes, learns, starts and is filed as in PEFT."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft, quant
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.nn import low_rank
from fmjax.peft import lora_math

KEY = jax.random.key(0)
BERT_OUTPUTS = ["query", "attention.output.dense"]

CASES = {
    "llama": dict(r=3, lora_alpha=5, target_modules=["q_proj", "o_proj", "down_proj"]),
    "llama, ranks": dict(
        r=2,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={r"layers\.2\.self_attn\.q_proj": 5},
        layers_to_transform=[0, 2],
    ),
    "llama, table and head": dict(r=2, target_modules=["embed_tokens", "lm_head", "k_proj"]),
    "gpt2": dict(r=3, lora_alpha=5, target_modules=["c_attn", "attn.c_proj", "c_fc", "wpe"]),
    "bert": dict(
        r=3, target_modules=[*BERT_OUTPUTS, "word_embeddings"], task_type="SEQ_CLS", use_rslora=True
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_both_ways_and_backward(request, kit, tmp_path, case):
    twin = request.getfixturevalue(case.split(",")[0])
    kit.exchange(twin, kit.peft_model(twin, use_dora=True, **CASES[case]), tmp_path)


@pytest.mark.parametrize("layers", [None, (1,)])
def test_a_fresh_adapter_is_that_of_peft_and_changes_nothing(twin, kit, tmp_path, layers):
    targets = ("q_proj", "down_proj") if "embed_tokens" in twin.params else ("c_attn", "wpe")
    targets = targets[: 2 if layers is None else 1]
    spec = peft.LoRA(rank=2, targets=targets, use_dora=True, layers_to_transform=layers)
    adapter = peft.init(KEY, spec, twin.model, twin.params)
    base = kit.logits(twin.model, twin.params, {})
    np.testing.assert_allclose(
        kit.logits(twin.model, twin.params, adapter), base, rtol=0, atol=1e-5
    )
    peft.save(tmp_path, spec, adapter, twin.model)
    theirs = kit.in_peft(twin, tmp_path)
    np.testing.assert_allclose(kit.torch_logits(theirs), base, rtol=0, atol=kit.ATOL)
    fresh = kit.peft_model(
        twin, r=2, target_modules=list(targets), use_dora=True, layers_to_transform=layers
    )
    # The magnitudes that PEFT starts from are the norms that it took before they were moved.
    norms = {n: p for n, p in theirs.named_parameters() if "magnitude" in n}
    assert norms.keys() == {n for n, _ in fresh.named_parameters() if "magnitude" in n}
    for name, own in norms.items():
        module = theirs.get_submodule(name.partition(".lora_magnitude")[0])
        weight = module.get_base_layer().weight.detach().numpy()
        axis = 0 if weight.shape[1] == own.numel() and "proj" not in name else 1
        np.testing.assert_allclose(
            own.detach().numpy(), np.linalg.norm(weight, axis=axis), rtol=1e-5
        )


def test_layers_of_a_stack_without_adapter_compute_exactly_the_base(llama, kit):
    spec = peft.LoRA(rank=2, targets=("q_proj",), use_dora=True, layers_to_transform=(1,))
    adapter = kit.trained(llama, spec)
    leaves = adapter["layers"]["self_attn"]["q_proj"]
    assert not leaves["magnitude"][0].any() and leaves["magnitude"][1].all()
    none = jax.tree.map(lambda x: x.at[1].set(0), leaves)
    np.testing.assert_array_equal(
        kit.logits(llama.model, llama.params, {"layers": {"self_attn": {"q_proj": none}}}),
        kit.logits(llama.model, llama.params, {}),
    )

    def loss(adapter):
        variables = {"params": llama.params, "adapter": adapter}
        return llama.model.apply(variables, input_ids=jnp.asarray(kit.IDS)).logits.std()

    gradient = jax.jit(jax.grad(loss))(adapter)["layers"]["self_attn"]["q_proj"]
    for name in ("lora_a", "lora_b", "magnitude"):
        assert not gradient[name][jnp.array([0, 2])].any() and gradient[name][1].any()


def test_dropout_goes_through_base_and_branch_as_in_peft(llama, kit):
    """With x dropped: y = x W + (m / ‖·‖ − 1) drop(x) W + m / ‖·‖ · s · drop(x) A B."""
    from fmjax.nn.dense import Dense

    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in ((5, 8), (8, 6)))
    b = jnp.asarray(rng.normal(size=6).astype(np.float32))
    leaves = {
        "lora_a": jnp.asarray(rng.normal(size=(8, 2)).astype(np.float32)),
        "lora_b": jnp.asarray(rng.normal(size=(2, 6)).astype(np.float32)),
        "lora_scale": jnp.float32(0.7),
        "magnitude": jnp.arange(1.0, 7.0),
    }
    module = Dense(6, ("embed", "mlp"), use_bias=True)
    variables = {"params": {"kernel": w, "bias": b}}
    rate = leaves | {"lora_dropout": jnp.float32(0.5)}
    y = module.apply(variables | {"adapter": rate}, x, rngs={"dropout": KEY})
    # The same key drops the same inputs of a plain adapter, whose B gives them back.
    probe = dict(lora_a=jnp.eye(8), lora_b=jnp.eye(8), lora_scale=1.0, lora_dropout=0.5)
    probe = {k: jnp.asarray(v, jnp.float32) for k, v in probe.items()}
    zero = {"params": {"kernel": jnp.zeros((8, 8))}, "adapter": probe}
    dropped = Dense(8, ("embed", "mlp")).apply(zero, x, rngs={"dropout": KEY})
    assert (dropped == 0).any() and (dropped != 0).any()
    branch = 0.7 * dropped @ leaves["lora_a"] @ leaves["lora_b"]
    factor = leaves["magnitude"] / jnp.linalg.norm(w + lora_math.delta(leaves), axis=0)
    expected = x @ w + b + (factor - 1) * (dropped @ w) + factor * branch
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # Merged, the kernel gives the same as without dropout.
    merged = {"params": {"kernel": lora_math.merged(w, leaves), "bias": b}}
    np.testing.assert_allclose(
        module.apply(merged, x), module.apply(variables | {"adapter": rate}, x), atol=1e-5
    )
    np.testing.assert_allclose(
        lora_math.unmerged(lora_math.merged(w, leaves), leaves, lora_math.norm(w, leaves)),
        w,
        atol=1e-5,
    )


@pytest.mark.optimised
def test_the_norm_needs_no_second_matrix():
    """Beside W nothing of W's size: the temporaries of the norm are those of rank r."""
    size, rank = 512, 4
    shapes = [(size, size), (size, rank), (rank, size), ()]
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    compiled = jax.jit(low_rank.column_norm).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < size * size * 4 / 4


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_over_packed_kernels(llama, kit, scan):
    """As over the same kernels unpacked: values, gradient and start."""
    model, params = fmjax.from_pretrained(llama.dir, scan_layers=scan)
    flat = tree.flatten(params)
    paths = [p for p in flat if p.endswith(("q_proj/kernel", "down_proj/kernel"))]
    pack = functools.partial(quant.quantize, lead=int(scan))
    packed = tree.unflatten(flat | {p: pack(flat[p]) for p in paths})
    plain = tree.unflatten(flat | {p: pack(flat[p]).dequantize(jnp.float32) for p in paths})
    spec = peft.LoRA(rank=2, targets=("q_proj", "down_proj"), use_dora=True)
    start = [peft.init(KEY, spec, model, p) for p in (packed, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *start)
    adapter = kit.trained(SimpleNamespace(model=model, params=plain), spec)

    def loss(adapter, params):
        variables = {"params": params, "adapter": adapter}
        return model.apply(variables, input_ids=jnp.asarray(kit.IDS)).logits.std()

    found = [jax.jit(jax.value_and_grad(loss))(adapter, p) for p in (packed, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_unscanned_layers_take_the_same_file(llama, kit, tmp_path):
    theirs = kit.peft_model(llama, use_dora=True, **CASES["llama, ranks"])
    kit.quiet(theirs.save_pretrained, tmp_path / "theirs")
    model, params = fmjax.from_pretrained(llama.dir, scan_layers=False)
    spec, adapter = peft.load(tmp_path / "theirs", model, params)
    np.testing.assert_allclose(
        kit.logits(model, params, adapter), kit.torch_logits(theirs), rtol=0, atol=kit.ATOL
    )
    fresh = peft.init(KEY, spec, model, params)
    stacked = peft.init(KEY, spec, llama.model, llama.params)
    np.testing.assert_allclose(
        fresh["layers_2"]["self_attn"]["v_proj"]["magnitude"],
        stacked["layers"]["self_attn"]["v_proj"]["magnitude"][2],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(use_dora="yes"), "use_dora='yes' must be True or False"),
        (dict(use_dora=True, lora_bias=True), "exclude each other"),
        (dict(use_dora=True, alpha=0), "alpha other than 0"),
        (dict(use_dora=True, alpha_pattern={"q_proj": 0}), "alpha other than 0"),
    ],
)
def test_specs_that_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said) as e:
        peft.LoRA(**fields)
    assert "\n" not in str(e.value)


def test_the_start_needs_the_base(llama, gpt2):
    spec = peft.LoRA(use_dora=True)
    with pytest.raises(ConfigError, match="q_proj/kernel.*pass params="):
        peft.init(KEY, spec, llama.model)
    with pytest.raises(ConfigError, match="q_proj/kernel.*pass params="):
        peft.init(KEY, spec, llama.model, gpt2.params)


def test_magnitudes_of_layers_without_adapter_must_be_zero(llama, kit, tmp_path):
    spec = peft.LoRA(rank=2, targets=("q_proj",), use_dora=True, layers_to_transform=(1,))
    adapter = peft.init(KEY, spec, llama.model, llama.params)
    flat = tree.flatten(adapter)
    path = "layers/self_attn/q_proj/magnitude"
    flat[path] = jnp.ones_like(flat[path])
    with pytest.raises(CheckpointError, match="does not have the rank 0"):
        peft.save(tmp_path, spec, tree.unflatten(flat), llama.model)
