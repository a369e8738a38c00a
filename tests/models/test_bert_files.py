"""Files of BERT and RoBERTa: old names, prefixes, and heads that the weights lack."""

import json

import jax
import numpy as np
import pytest
import transformers
from bert_cases import ATOL, compare, make, ours, ragged, theirs
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax.core.tree import flatten
from fmjax.hub import convert


def rename(directory, change):
    file = directory / "model.safetensors"
    save_file({change(k): v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


def edit_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def old(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bert-masked-lm", old),
        ("bert-masked-lm", lambda n: n.removeprefix("bert.")),
        ("bert", old),
        ("bert", lambda n: f"bert.{n}"),
        ("bert", lambda n: old(f"bert.{n}")),
        ("roberta-tags", lambda n: n.removeprefix("roberta.")),
        ("roberta", lambda n: f"roberta.{n}"),
    ],
)
def test_old_names_and_either_prefix(parity, tmp_path, name, change):
    hf = make(parity, tmp_path, name)
    rename(tmp_path, change)
    compare(hf, *fmjax.from_pretrained(tmp_path))


def test_a_tensor_under_two_names(parity, tmp_path):
    make(parity, tmp_path, "bert-tags")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "bert.embeddings.LayerNorm.weight"
    save_file(tensors | {old(name): tensors[name].copy()}, file, metadata={"format": "pt"})
    with pytest.raises(fmjax.FmjaxError, match=f"holds both '{name}' and '{old(name)}'"):
        fmjax.from_pretrained(tmp_path)


def test_files_with_tied_copies_buffers_and_the_heads_of_pretraining(parity, tmp_path):
    """As the published bert-base lies: a masked LM by its config, with a pooler and more."""
    hf = make(parity, tmp_path, "bert-pretraining")
    edit_config(tmp_path, architectures=["BertForMaskedLM"], gradient_checkpointing=False)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    tensors["bert.embeddings.position_ids"] = np.arange(16)[None]
    save_file(tensors, file, metadata={"format": "pt"})
    model, params = fmjax.from_pretrained(tmp_path)
    assert model.config.head == "masked-lm" and "pooler" not in params
    inputs = ragged(model.config)
    expected = theirs(hf, inputs)["prediction_logits"]
    np.testing.assert_allclose(ours(model, params, inputs)[0].logits, expected, rtol=0, atol=ATOL)
    with pytest.raises(fmjax.FmjaxError, match="'bert.pooler.dense.*no parameter.*architectures"):
        convert(tmp_path, tmp_path / "out")  # which loses nothing


def test_a_new_head_needs_permission(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", "bert")
    override = {"head": "sequence-classification", "id2label": ["bad", "fair", "good"]}
    remedy = r"lacks tensor 'classifier.weight' .*; pass new_head=jax.random.key\(0\)"
    with pytest.raises(fmjax.FmjaxError, match=remedy):
        fmjax.from_pretrained(tmp_path / "hf", override=override)
    key = jax.random.key(3)
    model, params = fmjax.from_pretrained(tmp_path / "hf", override=override, new_head=key)
    assert params["classifier"]["kernel"].shape == (32, 3)
    drawn = fmjax.init_params(model, key)
    np.testing.assert_array_equal(params["classifier"]["kernel"], drawn["classifier"]["kernel"])
    np.testing.assert_array_equal(  # the pooler was there
        params["pooler"]["kernel"], hf.pooler.dense.weight.detach().numpy().T
    )
    fmjax.save_pretrained(tmp_path / "out", model, params)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    compare(again.eval(), model, params)


def test_a_new_head_on_a_mesh_and_without_scan(parity, tmp_path):
    make(parity, tmp_path, "roberta")
    mesh = fmjax.make_mesh(data=4, fsdp=2)
    model, params = fmjax.from_pretrained(
        tmp_path,
        mesh=mesh,
        override={"head": "masked-lm"},
        new_head=jax.random.key(0),
        scan_layers=False,
    )
    kernel = params["predictions"]["dense"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 32)
    assert flatten(params).keys() == flatten(fmjax.abstract_params(model)).keys()


def test_another_number_of_labels(parity, tmp_path):
    make(parity, tmp_path, "roberta-classes")
    override = {"id2label": ["no", "yes"]}
    with pytest.raises(fmjax.FmjaxError, match="'classifier.out_proj.weight' has shape"):
        fmjax.from_pretrained(tmp_path, override=override)
    _, old = fmjax.from_pretrained(tmp_path)
    _, new = fmjax.from_pretrained(tmp_path, override=override, new_head=jax.random.key(0))
    assert new["classifier"]["kernel"].shape == (32, 2)
    np.testing.assert_array_equal(new["pooler"]["kernel"], old["pooler"]["kernel"])


def test_a_missing_encoder_tensor_is_no_new_head(parity, tmp_path):
    make(parity, tmp_path, "bert-tags")
    name = "bert.encoder.layer.1.output.dense.bias"
    rename(tmp_path, lambda n: "classifier.stray" if n == name else n)
    with pytest.raises(fmjax.FmjaxError, match=f"lacks tensor '{name}'.*check config.json"):
        fmjax.from_pretrained(tmp_path, new_head=jax.random.key(0))


# --- what the encoder does with its inputs -------------------------------------------------------
