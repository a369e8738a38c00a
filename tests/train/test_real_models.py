"""The loop with the library's own models, adapters and data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.core import tree
from fmjax.data import load_corpus, load_tokenizer, text_batches, train_sentencepiece
from fmjax.objectives import CausalLM, MaskedLM
from fmjax.parallel import make_mesh
from fmjax.train import adamw, fit, make_step

pytestmark = pytest.mark.slow

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 400,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def texts():
    return load_corpus("kjv")[:2]


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(texts, out, 400)
    return load_tokenizer(out)


def test_packed_text_in_bfloat16_resumes_exactly(texts, tokenizer, tmp_path):
    model = fmjax.build(GPT2, dtype="bfloat16", remat="full")
    step = make_step(model, CausalLM(z_loss=1e-4), adamw(3e-3), accumulate=2)

    def run(steps, out_dir):
        batches = text_batches(texts, tokenizer, batch_size=4, sequence_length=32)
        state = step.init(
            {"params": fmjax.init_params(model, jax.random.key(0))}, jax.random.key(1)
        )
        return fit(
            step, state, batches, steps=steps, out_dir=tmp_path / out_dir, log_every=1,
            progress=False,
        )  # fmt: skip

    whole = run(8, "whole")
    run(3, "parts")
    run(8, "parts")

    def log(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [(x["step"], x["loss"], x["grad_norm"]) for x in map(json.loads, lines)]

    assert log("whole") == log("parts")
    assert log("whole")[-1][1] < log("whole")[0][1] - 0.2
    assert {x.dtype for x in jax.tree.leaves(whole.state.variables)} == {jnp.dtype("float32")}


def test_lora_on_a_mesh(tmp_path):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model = fmjax.build(GPT2)
    params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
    spec = fmjax.peft.LoRA(rank=2, targets=("c_attn", "c_proj"))
    adapter = fmjax.peft.init(jax.random.key(1), spec, model, params)
    step = make_step(model, CausalLM(), adamw(1e-2), mesh=mesh)
    state = step.init({"params": params, "adapter": adapter}, jax.random.key(2))
    trained, _ = step.split(state.variables)
    assert tree.nbytes(state.opt_state) == 2 * tree.nbytes(trained) + 4
    ids = (np.arange(32) * np.arange(1, 9)[:, None] % 50).astype(np.int32)

    class Same:
        def __next__(self):
            return {"input_ids": ids}

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    first = fit(step, state, Same(), steps=1, out_dir=tmp_path, progress=False)
    second = fit(step, first.state, Same(), steps=12, out_dir=tmp_path, progress=False)
    assert second.metrics["loss"] < first.metrics["loss"] - 0.05
    merged = fmjax.peft.merge(model, params, second.state.variables["adapter"])
    out = model.apply({"params": merged}, input_ids=ids)
    together = model.apply(second.state.variables, input_ids=ids)
    np.testing.assert_allclose(out.logits, together.logits, atol=2e-4)


BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def test_masked_lm_hides_the_same_tokens_on_every_mesh():
    ids = np.tile(np.arange(16, dtype=np.int32) % 7 + 5, (8, 1))
    objective = MaskedLM(mask_token_id=4, vocab_size=64, special_ids=(0, 1, 2, 3))
    model = fmjax.build(BERT)

    def losses(mesh):
        params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
        step = make_step(model, objective, adamw(1e-2), mesh=mesh, accumulate=2)
        state = step.init({"params": params}, jax.random.key(1))
        found = []
        for _ in range(12):
            state, metrics = step(state, {"input_ids": ids})
            found.append([float(metrics[name]) for name in ("loss", "tokens")])
        return np.array(found)

    one = losses(None)
    assert len(set(one[:, 1])) > 4, "every step hides others"
    assert one[-1, 0] < one[0, 0] - 1
    np.testing.assert_allclose(losses(make_mesh(data=2, fsdp=2, tensor=2)), one, rtol=1e-3)
