"""BERT and RoBERTa of transformers, and what it takes to compare their twins here with them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import transformers

import fmjax
from fmjax.convert import open_directory

ATOL = 1e-4

# name → (class of transformers, options)
CASES = {
    "bert": ("BertModel", dict(type_vocab_size=3)),
    "bert-masked-lm": ("BertForMaskedLM", dict(num_hidden_layers=3, hidden_act="relu")),
    "bert-pretraining": ("BertForPreTraining", dict(layer_norm_eps=1e-2, pad_token_id=2)),
    "bert-classes": ("BertForSequenceClassification", dict(num_labels=3, num_hidden_layers=1)),
    "bert-many-labels": (
        "BertForSequenceClassification",
        dict(id2label={0: "a", 1: "b"}, problem_type="multi_label_classification"),
    ),
    "bert-number": (
        "BertForSequenceClassification",
        dict(num_labels=1, problem_type="regression", intermediate_size=45),
    ),
    "bert-tags": (
        "BertForTokenClassification",
        dict(num_labels=5, hidden_size=24, num_attention_heads=1),
    ),
    "bert-spans": (
        "BertForQuestionAnswering",
        dict(hidden_act="gelu_new", max_position_embeddings=10),
    ),
    "roberta": ("RobertaModel", dict(type_vocab_size=1)),
    "roberta-one-layer-one-head": (
        "RobertaModel",
        dict(num_hidden_layers=1, num_attention_heads=1, hidden_size=24),
    ),
    "roberta-masked-lm": ("RobertaForMaskedLM", dict(hidden_act="relu", layer_norm_eps=1e-5)),
    "roberta-pad-three": ("RobertaForMaskedLM", dict(pad_token_id=3, num_hidden_layers=3)),
    "roberta-classes": (
        "RobertaForSequenceClassification",
        dict(num_labels=3, num_attention_heads=8, type_vocab_size=1),
    ),
    "roberta-number": (
        "RobertaForSequenceClassification",
        dict(num_labels=1, problem_type="regression", intermediate_size=45),
    ),
    "roberta-tags": ("RobertaForTokenClassification", dict(num_labels=4, hidden_act="tanh")),
    "roberta-spans": (
        "RobertaForQuestionAnswering",
        dict(max_position_embeddings=12, num_hidden_layers=1),
    ),
}


def make(parity, directory, name, dtype="float32"):
    cls, options = CASES[name]
    roberta = cls.startswith("Roberta")
    options = {
        "vocab_size": parity.vocab,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "initializer_range": 0.15,
        "pad_token_id": 1 if roberta else 0,
    } | options
    config = getattr(transformers, "RobertaConfig" if roberta else "BertConfig")(**options)
    return parity.reference(getattr(transformers, cls), config, directory, dtype)


def ragged(config, length=10):
    """A full row, one padded on the right, one on the left; types of both sentences."""
    rng = np.random.default_rng(1)
    ids = rng.integers(4, config.vocab_size, (3, length))
    mask = np.ones_like(ids)
    mask[1, -length // 3 :] = 0
    mask[2, : length // 4] = 0
    return {
        "input_ids": np.where(mask, ids, config.pad_token_id),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, config.type_vocab_size, ids.shape),
    }


def theirs(hf, inputs):
    import torch

    with torch.no_grad():
        out = hf(**{k: torch.tensor(v) for k, v in inputs.items()}, output_hidden_states=True)
    out = dict(out)
    return {k: v.numpy() for k, v in out.items() if k != "hidden_states"} | {
        f"hidden_states[{i}]": h.numpy() for i, h in enumerate(out["hidden_states"])
    }


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, inputs):
    return model.apply({"params": params}, **inputs, output_hidden_states=True)


def ours(model, params, inputs):
    out = apply(model, params, {k: jnp.asarray(v, jnp.int32) for k, v in inputs.items()})
    return out, {f"hidden_states[{i}]": h for i, h in enumerate(out.hidden_states)}


def compare(hf, model, params):
    """Every field of the reference's output, padding positions included."""
    inputs = ragged(model.config)
    expected = theirs(hf, inputs)
    out, hidden = ours(model, params, inputs)
    assert len(hidden) == model.config.num_hidden_layers + 1
    for name, value in expected.items():
        got = hidden[name] if name in hidden else getattr(out, name)
        assert np.abs(value).max() > 0.1, f"{name}: near zero would agree with anything"
        np.testing.assert_allclose(got, value, rtol=0, atol=ATOL, err_msg=name)


def reload(directory, hf):
    """The export in the class that it names; nothing is missing, unexpected or newly drawn."""
    named = json.loads((directory / "config.json").read_text())["architectures"]
    assert named == [type(hf).__name__]
    again, info = getattr(transformers, named[0]).from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return again.eval()


def compare_files(source, target):
    a, b = open_directory(source), open_directory(target)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert tensor.view().tobytes() == b[name].view().tobytes(), name


def compare_export(hf, source, target, model, params, **options):
    fmjax.save_pretrained(target, model, params, **options)
    compare_files(source, target)
    assert not (target / "generation_config.json").exists()
    again = reload(target, hf)
    assert again.dtype == hf.dtype and again.config.id2label == hf.config.id2label
    assert again.config.problem_type == hf.config.problem_type
    inputs = ragged(model.config)
    if hf.dtype.is_floating_point and str(hf.dtype) == "torch.float32":
        expected = theirs(hf, inputs)
        for name, value in theirs(again, inputs).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
