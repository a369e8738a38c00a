"""Cross-entropy whose logits are computed part by part, against the plain one."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fmjax
from fmjax import peft
from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError
from fmjax.nn import chunked_head
from fmjax.objectives import CausalLM
from fmjax.parallel import DEFAULT_RULES, RULES, make_mesh
from fmjax.train import make_step

B, T, V = 4, 12, 64
SIZES = dict(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
FAMILIES = {
    "llama": SIZES | dict(model_type="llama"),
    "llama-tied": SIZES | dict(model_type="llama", tie_word_embeddings=True),
    "gemma2-softcap": SIZES | dict(model_type="gemma2", head_dim=8, final_logit_softcapping=0.5),
    "qwen3": SIZES | dict(model_type="qwen3", head_dim=8),
    "mixtral": SIZES | dict(model_type="mixtral", num_local_experts=4),
    "falcon": dict(
        model_type="falcon",
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
    ),
    "gpt2": dict(
        model_type="gpt2",
        vocab_size=V,
        n_embd=16,
        n_layer=1,
        n_head=4,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
}
ADAPTERS = {
    "lora": peft.LoRA(4, targets=("lm_head", "q_proj")),
    "dora": peft.LoRA(4, targets=("lm_head", "q_proj"), use_dora=True),
    "copied-head": peft.LoRA(4, targets=("q_proj",), modules_to_save=("lm_head",)),
}


def batch(rows=B, length=T):
    rng = np.random.RandomState(0)
    ids = jnp.asarray(rng.randint(0, V, (rows, length)), jnp.int32)
    return {"input_ids": ids, "attention_mask": jnp.ones_like(ids).at[0, 9:].set(0)}


def with_noise(adapter):
    """Every leaf moved, so that factors that start at zero have an effect."""
    leaves, treedef = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noise = [
        0.1 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return treedef.unflatten([x + n for x, n in zip(leaves, noise, strict=True)])


def make(family, adapter=None):
    model = fmjax.build(FAMILIES[family])
    variables = {"params": fmjax.init_params(model, jax.random.key(0))}
    if adapter:
        own = peft.init(jax.random.key(1), ADAPTERS[adapter], model, variables["params"])
        variables["adapter"] = with_noise(own)
    return model, variables


def outcome(model, variables, chunk, trained=None, data=None, **options):
    """(loss_sum, metrics), gradient by the collection `trained`, or by all."""
    objective = CausalLM(chunk=chunk, accuracy=True, z_loss=1e-2, **options)
    data = batch() if data is None else data

    def loss(part):
        total, weight, metrics, _ = objective.loss(
            model.apply, variables | part, {}, data, jax.random.key(0)
        )
        return total / weight, metrics

    part = variables if trained is None else {trained: variables[trained]}
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(part)


def same(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance / 10), a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    model, variables = make(family)
    same(outcome(model, variables, 8), outcome(model, variables, 0))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_on_the_head(adapter):
    model, variables = make("llama", adapter)
    plain = outcome(model, variables, 0, "adapter")
    same(outcome(model, variables, 8, "adapter"), plain)
    assert all(np.any(g) for p, g in tree.flatten(plain[1]).items() if "lm_head" in p)


def test_an_adapter_on_a_tied_head():
    model = fmjax.build(FAMILIES["llama-tied"])
    params = fmjax.init_params(model, jax.random.key(0))
    spec = peft.LoRA(4, targets=("lm_head", "embed_tokens"))
    adapter = with_noise(peft.init(jax.random.key(1), spec, model, params))
    variables = {"params": params, "adapter": adapter}
    same(outcome(model, variables, 8, "adapter"), outcome(model, variables, 0, "adapter"))


@pytest.mark.parametrize("chunk", [1, 20, 1000])
def test_parts_of_every_length(chunk):
    model, variables = make("llama")
    same(outcome(model, variables, chunk), outcome(model, variables, 0))


def test_tokens_that_do_not_divide():
    model, variables = make("llama")
    data = batch(length=13)
    same(
        outcome(model, variables, 20, data=data),
        outcome(model, variables, 0, data=data),
    )


def test_parameters_in_bfloat16_get_gradients_in_bfloat16():
    model = fmjax.build(FAMILIES["llama"], dtype="bfloat16", param_dtype="bfloat16")
    variables = {"params": fmjax.init_params(model, jax.random.key(0))}
    (loss, _), grads = outcome(model, variables, 8)
    (plain, _), expected = outcome(model, variables, 0)
    np.testing.assert_allclose(loss, plain, rtol=1e-5)
    a, b = (g["params"]["lm_head"]["kernel"] for g in (grads, expected))
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=5e-4)  # 2 ulp


@pytest.mark.parametrize(
    ("family", "axes"),
    [("llama", dict(data=2, fsdp=2, tensor=2)), ("llama-tied", dict(fsdp=4, context=2))],
)
def test_eight_devices_give_what_one_gives(family, axes):
    model, variables = make(family)
    one = outcome(model, variables, 0, data=batch(rows=8))
    mesh = make_mesh(**{"data": 1, **axes})
    params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
    with logical.use(mesh, DEFAULT_RULES):
        eight = outcome(model, {"params": params}, 4, data=batch(rows=8))
    same(jax.device_get(eight), one)


def test_evaluation_reports_the_same_figures():
    model, variables = make("llama")
    plain, parts = (
        CausalLM(chunk=chunk).loss(model.apply, variables, {}, batch(), None) for chunk in (0, 8)
    )
    assert set(parts[2]) == {"loss", "accuracy"}
    same(parts, plain)


def test_only_the_loss_is_differentiable():
    model, variables = make("llama")

    def accuracy(variables):
        return CausalLM(chunk=8, accuracy=True).loss(model.apply, variables, {}, batch(), None)[2][
            "loss"
        ][0]

    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(accuracy)(variables)))


WIDE, TOKENS = 1 << 17, 1024


def wide_step(chunk, trainable):
    """The lowered step of a model with 128k words."""
    model = fmjax.build(FAMILIES["llama"] | dict(vocab_size=WIDE), remat="full")
    params = jax.eval_shape(lambda: fmjax.init_params(model, jax.random.key(0)))
    step = make_step(model, CausalLM(chunk=chunk), optax.sgd(1e-2), trainable=trainable)
    state = step.abstract_state({"params": params})
    ids = jax.ShapeDtypeStruct((2, TOKENS // 2), jnp.int32)
    return step.lower(state, {"input_ids": ids})


@pytest.mark.optimised
@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen-head"])
def test_a_vocabulary_of_128k_takes_a_tenth_of_the_temporaries(frozen):
    trainable = [(r"lm_head|embed", not frozen), (r".", True)]
    plain, chunked = (wide_step(chunk, trainable) for chunk in (0, 32))
    sizes = [x.compile().memory_analysis().temp_size_in_bytes for x in (plain, chunked)]
    assert sizes[1] <= sizes[0] / 10
    logits = f"2x{TOKENS // 2}x{WIDE}x"
    assert logits in plain.as_text() and logits not in chunked.as_text()
    # A head that is not trained has no gradient to hold.
    sums = re.findall(rf"stablehlo.add .*tensor<16x{WIDE}xf32>", chunked.as_text())
    assert bool(sums) != frozen


def test_the_head_chooses_by_size(monkeypatch):
    length = chunked_head.part_length
    assert length((2, 512), 32000, None) == 0
    assert length((4, 4096), 32000, None) == 4096 // 4
    assert length((1, 4096), 32000, 1024) == 1024
    assert length((8, 4096), 32000, 1024) == 128
    assert length((1, 10), 32000, 4) == 2 and length((1, 10), 32000, 1000) == 10
    with logical.use(make_mesh(data=2, context=2, tensor=2), DEFAULT_RULES):
        assert length((4, 8192), 32000, 1024) == 512
        assert length((2, 8192), 32000, None) == 0
        # Words that do not divide are whole on every device.
        assert length((4, 8192), 32001, None) == 8192 // 4
    # The sequence is split over the tensor axis up to the head, and words are from there on.
    with logical.use(make_mesh(data=2, tensor=4), RULES["sequence"]):
        assert length((2, 4096), 128000, 1024) == 256


def test_bad_requests():
    model, variables = make("llama")
    with pytest.raises(ConfigError, match="chunk=-1 .* positive"):
        CausalLM(chunk=-1).loss(model.apply, variables, {}, batch(), None)

    def apply(variables, input_ids):
        return types.SimpleNamespace(logits=jnp.zeros((*input_ids.shape, V)))

    with pytest.raises(ConfigError, match="token_sums argument"):
        CausalLM(chunk=8).loss(apply, {}, {}, {"input_ids": batch()["input_ids"]}, None)
    bare = fmjax.build(FAMILIES["llama"], override={"head": "token-classification"})
    variables = {"params": fmjax.init_params(bare, jax.random.key(0))}
    with pytest.raises(ConfigError, match="token_sums is for all positions"):
        CausalLM(chunk=8).loss(bare.apply, variables, {}, batch(), None)
