"""Primitives against their definitions; the families' parity tests cover them in concert."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fmjax
from fmjax.core import tree
from fmjax.core.errors import ConfigError, DataError
from fmjax.core.execution import Execution
from fmjax.nn.activations import activation
from fmjax.nn.dense import Dense
from fmjax.nn.dropout import dropout
from fmjax.nn.embed import Embed
from fmjax.nn.param import abstract
from fmjax.nn.rope import Rope
from fmjax.nn.stack import REMAT, restack, unstack

LLAMA = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = jax.random.randint(jax.random.key(7), (2, 9), 0, 61)


@pytest.fixture(scope="module")
def llama():
    model = fmjax.build(LLAMA)
    return model, fmjax.init_params(model, jax.random.key(0))


def test_dense_with_fused_features_is_one_matmul() -> None:
    layer = Dense((3, 4), ("embed", "qkv", "heads"), use_bias=True)
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    variables = layer.init(jax.random.key(1), x)
    kernel = variables["params"]["kernel"]
    y = layer.apply(variables, x)
    np.testing.assert_allclose(y.reshape(2, 5, 12), x @ kernel.reshape(6, 12), atol=1e-6)


def test_dense_lora_port_adds_the_scaled_low_rank_product() -> None:
    layer = Dense(4, ("embed", "mlp"))
    x = jax.random.normal(jax.random.key(0), (2, 6))
    variables = layer.init(jax.random.key(1), x)
    a, b = (
        jax.random.normal(jax.random.key(2), (6, 2)),
        jax.random.normal(jax.random.key(3), (2, 4)),
    )
    adapter = {"lora_a": a, "lora_b": b, "lora_scale": jnp.float32(0.5)}
    merged = variables["params"]["kernel"] + 0.5 * a @ b
    y = layer.apply({**variables, "adapter": adapter}, x)
    np.testing.assert_allclose(y, x @ merged, atol=1e-5)


def test_embed_gives_nan_for_ids_outside_the_table() -> None:
    layer = Embed(5, 3)
    variables = layer.init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    y = layer.apply(variables, jnp.array([4, 5]))
    assert not jnp.isnan(y[0]).any() and jnp.isnan(y[1]).all()


def test_dropout_acts_exactly_when_a_key_is_given() -> None:
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x):
            return dropout(self, x, 0.5)

    x = jnp.ones((64, 64))
    np.testing.assert_array_equal(Drop().apply({}, x), x)
    y = Drop().apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, 2.0} and abs(float(y.mean()) - 1) < 0.1


def test_abstract_tree_bears_the_axes_of_every_parameter(llama) -> None:
    model, params = llama
    specs = tree.flatten(abstract(model, model.dummy_inputs()))
    for path, x in tree.flatten(params).items():
        assert specs[path].shape == x.shape and len(specs[path].axes) == x.ndim
    assert specs["layers/mlp/up_proj/kernel"].axes == ("layers", "embed", "mlp")
    assert specs["norm/scale"].axes == ("norm",)


def test_scanned_and_unscanned_stacks_agree(llama) -> None:
    model, params = llama
    loop = model.clone(execution=Execution(scan_layers=False))
    apart = unstack(params, "layers", 3)
    np.testing.assert_allclose(
        model.apply({"params": params}, IDS).logits,
        loop.apply({"params": apart}, IDS).logits,
        atol=1e-5,
    )
    jax.tree.map(np.testing.assert_array_equal, restack(apart, "layers", 3), params)
    assert tree.flatten(abstract(loop, loop.dummy_inputs())).keys() == tree.flatten(apart).keys()


@pytest.mark.parametrize("policy", sorted(set(REMAT) - {"none"}))
@pytest.mark.parametrize("scan", [True, False])
def test_remat_changes_no_gradient(llama, policy: str, scan: bool) -> None:
    model, params = llama
    params = params if scan else unstack(params, "layers", 3)

    def grads(remat: str):
        run = model.clone(execution=Execution(remat=remat, scan_layers=scan))
        return jax.jit(jax.grad(lambda p: run.apply({"params": p}, IDS).logits.std()))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads(policy), grads("none")
    )


@pytest.mark.parametrize(
    ("policy", "again"), [("dots", 1), ("minimal", 2), ("attention", 4), ("qkv", 5), ("full", 8)]
)
def test_what_remat_computes_again(llama, policy: str, again: int) -> None:
    """Of a layer's seven products with weights, without the last, and of attention's two."""
    model, params = llama

    def products(remat: str) -> int:
        run = model.clone(execution=Execution(remat=remat))
        loss = jax.grad(lambda p: run.apply({"params": p}, IDS).logits.std())
        return str(jax.make_jaxpr(loss)(params)).count("dot_general[")

    assert products(policy) == products("none") + again


def test_an_adapter_may_cover_only_some_modules_of_a_scanned_stack(llama) -> None:
    model, params = llama
    keys = jax.random.split(jax.random.key(3), 2)
    a = 0.1 * jax.random.normal(keys[0], (3, 32, 2))
    b = 0.1 * jax.random.normal(keys[1], (3, 2, 32))
    leaf = {"lora_a": a, "lora_b": b, "lora_scale": jnp.full(3, 2.0)}
    adapter = {"layers": {"self_attn": {"q_proj": leaf}}}
    merged = jax.tree.map(lambda x: x, params)
    merged["layers"]["self_attn"]["q_proj"]["kernel"] += 2.0 * a @ b
    np.testing.assert_allclose(
        model.apply({"params": params, "adapter": adapter}, IDS).logits,
        model.apply({"params": merged}, IDS).logits,
        atol=1e-5,
    )


def test_packed_documents_see_only_themselves(llama) -> None:
    model, params = llama
    segments = jnp.array([[1] * 4 + [2] * 5] * 2)
    positions = jnp.array([[*range(4), *range(5)]] * 2)
    packed = model.apply(
        {"params": params}, IDS, segment_ids=segments, position_ids=positions
    ).logits
    for part in (slice(0, 4), slice(4, 9)):
        alone = model.apply({"params": params}, IDS[:, part]).logits
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


def test_hidden_states_are_embeddings_layers_and_the_normed_last(llama) -> None:
    model, params = llama
    out = model.apply({"params": params}, IDS, output_hidden_states=True)
    assert len(out.hidden_states) == 4
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)
    np.testing.assert_array_equal(out.hidden_states[0], params["embed_tokens"]["embedding"][IDS])


def test_bfloat16_compute_keeps_float32_params_and_logits(llama) -> None:
    _, params = llama
    model = fmjax.build(LLAMA, dtype="bfloat16")
    out = model.apply({"params": params}, IDS)
    assert out.logits.dtype == jnp.float32 and out.last_hidden_state.dtype == jnp.bfloat16


def test_compiled_size_does_not_grow_with_depth() -> None:
    def size(layers: int) -> int:
        model = fmjax.build({**LLAMA, "num_hidden_layers": layers})
        params = jax.eval_shape(
            lambda: model.init(jax.random.key(0), **model.dummy_inputs())["params"]
        )
        grad = jax.jit(jax.grad(lambda p: model.apply({"params": p}, IDS).logits.sum()))
        return len(grad.lower(params).as_text())

    assert size(48) < 1.05 * size(4)


def test_bad_arguments_name_themselves(llama) -> None:
    model, params = llama
    for options, message in (
        ({"remat": "some"}, "'some'.*none.*full"),
        ({"attention": "magic"}, "'magic'.*xla"),
        ({"speed": 11}, "speed.*scan_layers"),
        ({"dtype": "int4"}, "int4.*bfloat16"),
    ):
        with pytest.raises(ConfigError, match=message):
            fmjax.build(LLAMA, **options).apply({"params": params}, IDS)
    with pytest.raises(DataError, match="attention_mask"):
        model.apply({"params": params}, IDS, attention_mask=jnp.ones((2, 4)))
    with pytest.raises(DataError, match="cache"):
        model.apply({"params": params}, IDS, cache_index=0, mutable=["cache"])
    with pytest.raises(ConfigError, match="swoosh.*silu"):
        activation("swoosh")


# What float32 computes is rounded to the eight bits of bfloat16. By tanh it cancels in both.
@pytest.mark.parametrize(
    ("name", "approximate", "atol"), [("gelu", "none", 1e-6), ("gelu_new", "tanh", 2e-6)]
)
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 4e-7), ("bfloat16", 2**-8)])
def test_gelu_is_torchs(name: str, approximate: str, dtype: str, rtol: float, atol: float) -> None:
    """Also where little is left of it: both compute bfloat16 in float32."""
    x = torch.linspace(-4, 4, 401).to(getattr(torch, dtype)).float().requires_grad_()
    wanted = torch.nn.functional.gelu(x, approximate=approximate)
    wanted.sum().backward()
    value, pull = jax.vjp(activation(name), jnp.asarray(x.detach().numpy(), dtype))
    assert value.dtype == dtype
    (grad,) = pull(jnp.ones_like(value))
    for ours, theirs in ((value, wanted.detach()), (grad, x.grad)):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "spiral"}, "'spiral'.*yarn"),
        ({"rope_type": "linear"}, "'linear' needs factor"),
        ({"rope_type": "default", "factor": 2.0}, "does not read factor"),
    ],
)
def test_rope_parameters_are_checked(parameters, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rope.from_hf(parameters)
