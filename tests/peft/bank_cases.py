"""Small models and adapters for banks, and what each row gives with its own adapter alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import fmjax
from fmjax import peft
from fmjax.core import tree

KEY = jax.random.key(0)
VOCAB = 40
IDS = jnp.asarray(np.random.default_rng(0).integers(2, VOCAB, (4, 7)), jnp.int32)
ROWS = np.array([2, 0, 1, 2])
LLAMA = dict(
    model_type="llama",
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    initializer_range=0.3,
)
BERT = dict(
    model_type="bert",
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=8,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.3,
    architectures=["BertForSequenceClassification"],
    num_labels=3,
)
SPECS = (
    peft.LoRA(rank=2, alpha=4, targets=("q_proj", "embed_tokens")),
    peft.LoRA(rank=3, alpha=9, targets=("q_proj", "down_proj", "lm_head"), use_rslora=True),
)
HEADS = (
    peft.LoRA(rank=2, targets=("query",), modules_to_save=("classifier", "pooler")),
    peft.LoRA(rank=3, targets=("key", "query"), modules_to_save=("classifier", "LayerNorm")),
)


def build(fields, **options):
    model = fmjax.build(fields, **options)
    return model, fmjax.init_params(model, KEY)


@functools.cache
def llama():
    return build(LLAMA)


@functools.cache
def bert():
    return build(BERT)


def trained(base, spec, seed=0):
    """After a pretended training; without padding inside one adapter everything may move."""
    rng = np.random.default_rng(seed)
    adapter = peft.init(KEY, spec, *base)
    mask = tree.match_rules(peft.TRAINABLE, adapter)
    return jax.tree.map(
        lambda x, own: x + jnp.asarray(own * 0.3 * rng.normal(size=x.shape), x.dtype),
        adapter,
        mask,
    )


@functools.cache
def adapters():
    return [trained(llama(), spec, seed) for seed, spec in enumerate(SPECS)]


def padded(x, shape):
    """With zeros at the ends: factors of a smaller rank in a bank."""
    return np.pad(x, [(0, n - m) for m, n in zip(x.shape, shape, strict=True)]) if shape else x


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model, params, adapter, ids):
    return model.apply({"params": params, "adapter": adapter}, input_ids=ids).logits


def outputs(model, params, adapter, ids=IDS):
    return np.asarray(_outputs(model, params, adapter, ids))


def one_by_one(base, adapters, rows=ROWS):
    every = [outputs(*base, adapter) for adapter in ({}, *adapters)]
    return np.stack([every[row][i] for i, row in enumerate(rows)])
