"""A model of transformers, its twin here, and what it takes to compare them."""

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.convert import open_directory, param_items
from fmjax.models.registry import get_family

sys.path.append(str(Path(__file__).parent))  # for bert_cases

ATOL = 1e-4
VOCAB = 61


def reference(cls, config, directory, dtype="float32", attention="eager"):
    """A random transformers model, saved in `directory`; norms and biases are random too."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    # Read back, because .to(bfloat16) above also rounded the RoPE tables, which loading does not.
    return cls.from_pretrained(directory, attn_implementation=attention).eval()


def ragged(length):
    """ids and mask [3, length]: a full row, one padded on the right, one on the left."""
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, length))
    mask = np.ones_like(ids)
    mask[1, -length // 3 :] = 0
    mask[2, : length // 4] = 0
    return ids, mask


def reference_logits(model, ids, mask):
    import torch

    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    return out.logits.float().numpy()


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, ids, mask):
    return model.apply({"params": params}, input_ids=ids, attention_mask=mask).logits


def compare_logits(hf, model, params, length):
    ids, mask = ragged(length)
    ours = apply(model, params, jnp.asarray(ids, jnp.int32), jnp.asarray(mask))
    assert ours.shape == (*ids.shape, VOCAB) and ours.dtype == jnp.float32
    theirs = reference_logits(hf, ids, mask)
    assert np.abs(theirs).max() > 0.1, "logits near zero would agree with anything"
    keep = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(ours)[keep], theirs[keep], rtol=0, atol=ATOL)


def compare_export(hf, directory, out, model, params, **options):
    """Exported tensors equal the imported files bit for bit, and transformers computes the same."""
    from transformers import AutoModelForCausalLM

    fmjax.save_pretrained(out, model, params, **options)
    theirs, ours = open_directory(directory), open_directory(out)
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype
        assert tensor.view().tobytes() == ours[name].view().tobytes(), name
    attention = hf.config._attn_implementation
    again = AutoModelForCausalLM.from_pretrained(out, attn_implementation=attention).eval()
    assert type(again) is type(hf) and again.dtype == hf.dtype
    ids, mask = ragged(10)
    np.testing.assert_array_equal(
        reference_logits(again, ids, mask), reference_logits(hf, ids, mask)
    )


def compare_gradients(hf, model, params):
    """Gradients of the mean next-token loss with respect to every tensor of the file."""
    import torch

    ids, mask = ragged(10)
    ids, mask = ids[:2], mask[:2]  # a padding query that predicts a token is nobody's business
    labels = np.where(mask, ids, -100)
    hf.zero_grad()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    hf(**{k: torch.tensor(v) for k, v in batch.items()}).loss.backward()

    def loss(params):
        logits = apply(model, params, jnp.asarray(ids, jnp.int32), jnp.asarray(mask))[:, :-1]
        chosen = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        losses = jax.nn.logsumexp(logits, -1) - chosen
        return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()

    rows = get_family(model.config.model_type).rows(model.config)
    ours = {i.name: i.read() for i in param_items(rows, jax.jit(jax.grad(loss))(params))}
    theirs = {name: p.grad.numpy() for name, p in hf.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=ATOL, err_msg=name)
        assert np.abs(grad).max() > 1e-3 or name.endswith("k_proj.bias"), name


def compare_greedy(hf, model, params, new_tokens=8):
    """Greedy continuations of prompts of unequal length, left-padded for the reference."""
    import torch

    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, VOCAB, n).tolist() for n in (5, 1, 3)]
    ids = np.array([[0] * (5 - len(p)) + p for p in prompts])
    mask = np.array([[0] * (5 - len(p)) + [1] * len(p) for p in prompts])
    theirs = hf.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=[],
        pad_token_id=0,
    )
    ours = fmjax.generate(
        model, {"params": params}, prompts, max_new_tokens=new_tokens, eos_token_id=()
    )
    np.testing.assert_array_equal(ours.tokens, theirs[:, 5:].numpy())


@pytest.fixture(scope="session")
def parity():
    return SimpleNamespace(
        reference=reference,
        logits=compare_logits,
        export=compare_export,
        gradients=compare_gradients,
        greedy=compare_greedy,
        vocab=VOCAB,
    )
