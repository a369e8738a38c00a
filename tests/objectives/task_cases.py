"""Tiny models and comparisons that the tests of task objectives share."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

import fmjax
from fmjax.convert import param_items
from fmjax.models.registry import get_family
from fmjax.train import make_step

ATOL = 1e-5


def given(**fields):
    """A model whose output is what `variables["params"]` holds under the names of `fields`."""

    def apply(variables, input_ids, attention_mask=None, token_type_ids=None, rngs=None):
        return types.SimpleNamespace(**{k: variables["params"][v] for k, v in fields.items()})

    return apply


def mean_and_gradient(objective, apply, params, batch, rng=None):
    """loss_sum / weight, its gradient by the parameters, and the metrics' quotients."""

    def loss(params, batch):
        total, weight, metrics, extra = objective.loss(apply, {"params": params}, {}, batch, rng)
        assert extra == {} and total.dtype == weight.dtype == jnp.float32
        return total / weight, {name: s / w for name, (s, w) in metrics.items()}

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    return value, grads, metrics


def against_torch(objective, apply, params, batch, torch_loss):
    """Value and gradient equal `torch_loss`, of the same parameters as torch tensors."""
    theirs = {k: torch.tensor(np.asarray(v), requires_grad=True) for k, v in params.items()}
    expected = torch_loss(**theirs)
    expected.backward()
    value, grads, metrics = mean_and_gradient(objective, apply, params, batch)
    np.testing.assert_allclose(value, expected.item(), rtol=ATOL, atol=ATOL)
    for name, x in theirs.items():
        np.testing.assert_allclose(grads[name], x.grad.numpy(), rtol=0, atol=ATOL, err_msg=name)
    assert max(x.grad.abs().max() for x in theirs.values()) > 1e-3
    return metrics


def bert(cls, directory, **options):
    """A tiny random BERT of transformers and the same one here: (hf, model, params)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.BertConfig(
        **{
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 20,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 12,
            "initializer_range": 0.3,
        }
        | options
    )
    getattr(transformers, cls)(config).save_pretrained(directory)
    hf = getattr(transformers, cls).from_pretrained(directory, attn_implementation="eager").eval()
    return hf, *fmjax.from_pretrained(directory)


def text_batch(shape, seed=0):
    """input_ids, attention_mask and token_type_ids of `shape`, padded on the right.

    Not with pad_token_id, of which torch's embedding never gives a gradient.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 40, shape).astype(np.int32)
    lengths = rng.integers(shape[-1] // 2, shape[-1] + 1, shape[:-1])
    mask = (np.arange(shape[-1]) < lengths[..., None]).astype(np.int32)
    types_ = rng.integers(0, 2, shape).astype(np.int32)
    return {"input_ids": np.where(mask, ids, 1), "attention_mask": mask, "token_type_ids": types_}


def compare_model(objective, hf, model, params, batch, loss=None, absent=()):
    """Loss and every gradient of a whole model; `loss` is torch's, default the model's own."""
    hf.zero_grad()
    tensors = {k: torch.tensor(v) for k, v in batch.items()}
    tensors = {k: x if x.is_floating_point() else x.long() for k, x in tensors.items()}
    expected = hf(**tensors).loss if loss is None else loss(hf, tensors)
    expected.backward()
    value, grads, _ = mean_and_gradient(objective, model.apply, params, batch)
    np.testing.assert_allclose(value, expected.item(), rtol=ATOL)
    rows = get_family(model.config.model_type).rows(model.config)
    ours = {item.name: item.read() for item in param_items(rows, grads)}
    theirs = {n: p.grad.numpy() for n, p in hf.named_parameters() if p.grad is not None}
    assert set(ours) - set(theirs) == set(absent)
    for name, grad in theirs.items():
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=ATOL, err_msg=name)
    for name in absent:
        np.testing.assert_array_equal(ours[name], 0)


H = 6


def toy(outputs):
    """A model over a table of 40 ids: `outputs(features [B, T, H], params)` makes its fields."""

    def apply(variables, input_ids, attention_mask=None, token_type_ids=None, rngs=None):
        p = variables["params"]
        return types.SimpleNamespace(**outputs(jnp.tanh(p["table"][input_ids]), p))

    return apply


def toy_params(outputs=3, seed=0):
    rng = np.random.RandomState(seed)
    return {
        "table": jnp.asarray(rng.randn(40, H), jnp.float32),
        "head": jnp.asarray(rng.randn(H, outputs), jnp.float32),
    }


def update(apply, objective, params, batch, **options):
    """Parameters and metrics after one step of plain gradient descent."""
    step = make_step(apply, objective, optax.sgd(0.1), clip_norm=None, **options)
    params = jax.tree.map(jnp.array, params)  # The step consumes them.
    state, metrics = step(step.init({"params": params}, jax.random.key(0)), batch)
    return jax.device_get((state.variables["params"], metrics))


def same_update(apply, objective, params, batch, *variants):
    """One step with each variant's options (accumulate, mesh) is the step without."""
    one, metrics = update(apply, objective, params, batch)
    for options in variants:
        other, again = update(apply, objective, params, batch, **options)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=ATOL), one, other)
        assert metrics.keys() == again.keys()
        for name in metrics:
            np.testing.assert_allclose(metrics[name], again[name], rtol=ATOL, err_msg=name)
    assert np.abs(one["table"] - params["table"]).max() > 1e-4
