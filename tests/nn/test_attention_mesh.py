"""Kernels on eight devices, under remat and scan, inside models: what the reference gives."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import fmjax
from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError
from fmjax.models.llama.config import LlamaConfig
from fmjax.nn.attention_blockwise import blockwise
from fmjax.nn.attention_mesh import on_mesh
from fmjax.nn.attention_splash import splash
from fmjax.nn.attention_xla import xla
from fmjax.nn.masks import Mask
from fmjax.nn.stack import REMAT
from fmjax.parallel import DEFAULT_RULES, make_mesh

B, H, T, K = 4, 4, 24, 8
texts = jnp.asarray(np.repeat([[1, 2, 3, 0]], B, 0).repeat(6, 1))
valid = jnp.arange(T)[None] < jnp.array([24, 20, 11, 5])[:, None]
MASK = Mask(segments=(texts, texts), valid=valid)


def arrays(groups):
    rng = np.random.default_rng(0)
    shapes = [(B, H, T, K), (B, groups, T, K), (B, groups, T, K), (B, T, H * K)]
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def gradients(f, groups, bias=None):
    q, k, v, dout = arrays(groups)
    dout = dout * valid[..., None]
    # Under jit, as every step is.
    grad = jax.jit(jax.grad(lambda q, k, v, b: (f(q, k, v, MASK, b) * dout).sum(), (0, 1, 2)))
    return grad(q, k, v, bias)


def assert_close(found, expected) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "tensor"), [(4, 2), (2, 4), (1, 2)])
def test_batch_and_heads_are_split(groups, tensor) -> None:
    mesh = make_mesh(2, 4 // tensor, tensor, devices=jax.devices())
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(1, H, 1, T)), jnp.float32)
    with logical.use(mesh, DEFAULT_RULES):
        found = gradients(functools.partial(on_mesh, blockwise), groups, bias)
    assert_close(found, gradients(xla, groups, bias))


def test_splash_is_split_too() -> None:
    def kernel(q, k, v, mask, bias):
        return splash(q, k, v, mask, interpret=True)

    with logical.use(make_mesh(2, 2, 2, devices=jax.devices()), DEFAULT_RULES):
        found = gradients(functools.partial(on_mesh, kernel), 2)
    assert_close(found, gradients(xla, 2))


def test_inside_a_map_over_another_axis() -> None:
    """As in a stage of a pipeline: here `data` stands for its axis."""
    mesh = make_mesh(2, 2, 2, devices=jax.devices())
    rules = (("batch", "fsdp"), *DEFAULT_RULES)

    def stage(q, k, v, mask, bias):
        return jax.shard_map(
            lambda *a: on_mesh(blockwise, *a, mask),
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            axis_names={"data"},
            check_vma=False,
        )(q, k, v)

    with logical.use(mesh, rules):
        found = gradients(stage, 2)
    assert_close(found, gradients(xla, 2))


CONFIG = LlamaConfig(
    vocab_size=31,
    hidden_size=32,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def model_gradients(mesh=None, **execution):
    model = fmjax.build(CONFIG, **execution)
    params = fmjax.init_params(fmjax.build(CONFIG), jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (B, T), 0, 31)

    def loss(params):
        with logical.use(mesh, DEFAULT_RULES):
            out = model.apply(
                {"params": params}, input_ids=ids, attention_mask=valid, segment_ids=texts
            )
        return (jax.nn.logsumexp(out.logits, -1) * valid).sum() / valid.sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("kernel", ["blockwise", "splash"])
def test_a_model_on_a_mesh_gives_what_one_device_gives(kernel) -> None:
    mesh = make_mesh(2, 2, 2, devices=jax.devices())
    found = model_gradients(mesh, attention=kernel, remat="attention")
    loss, grads = model_gradients(attention="xla")
    np.testing.assert_allclose(found[0], loss, rtol=1e-5)
    for name, grad in tree.flatten(grads).items():
        np.testing.assert_allclose(
            tree.flatten(found[1])[name], grad, rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_a_kernel_that_cannot_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'cudnn' runs on NVIDIA GPUs"):
        model_gradients(attention="cudnn")


def primitives(jaxpr, counts):
    """Counts the equations of a jaxpr, those of its inner ones included."""
    for eqn in jaxpr.eqns:
        counts[eqn.primitive.name] += 1
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                primitives(inner, counts)
    return counts


@pytest.mark.parametrize("meshed", [False, True])
def test_saving_attention_saves_its_second_run(meshed) -> None:
    """The forward loop of blocks is one of rows and one of columns; so is the backward loop."""
    mesh = make_mesh(2, 2, 2, devices=jax.devices()) if meshed else None
    q, k, v, _ = arrays(2)

    def loops(policy) -> int:
        def loss(q, k, v):
            with logical.use(mesh, DEFAULT_RULES):
                return jnp.sin(on_mesh(blockwise, q, k, v, MASK)).sum()

        f = loss if policy == "none" else jax.checkpoint(loss, policy=REMAT[policy])
        jaxpr = jax.jit(jax.grad(f, (0, 1, 2))).trace(q, k, v).jaxpr
        return primitives(jaxpr.jaxpr, Counter())["while"]

    once = loops("none")
    assert loops("attention") == once
    assert loops("full") > once


@pytest.mark.parametrize("kernel", ["blockwise", "splash"])
def test_decoding_with_a_kernel_for_the_prompt(kernel) -> None:
    params = fmjax.init_params(fmjax.build(CONFIG), jax.random.key(0))

    def tokens(attention):
        model = fmjax.build(CONFIG, attention=attention)
        prompts = [[5, 6, 7], [8]]
        return fmjax.generate(
            model, {"params": params}, prompts, max_new_tokens=4, eos_token_id=()
        ).tokens

    np.testing.assert_array_equal(tokens(kernel), tokens("xla"))
