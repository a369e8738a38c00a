"""Files of decoders: another head on the same weights, prefixes, old spellings of config.json."""

import json

import jax
import numpy as np
import pytest
from bert_cases import compare_files
from head_cases import compare, make, ragged, reload
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax.core.tree import flatten
from fmjax.hub import convert

CLASSES = "sequence-classification"


def rename(directory, change):
    file = directory / "model.safetensors"
    save_file({change(k): v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


def edit_config(directory, **changes):
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def same(ours, theirs, but=()):
    """Equal parameters, apart from the heads' named in `but`, which only one side has."""
    ours, theirs = flatten(ours), flatten(theirs)
    assert {p.partition("/")[0] for p in ours.keys() ^ theirs.keys()} == set(but)
    for path in ours.keys() & theirs.keys():
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


@pytest.mark.parametrize(
    ("family", "head", "lacks", "tied"),
    [
        ("llama", CLASSES, "score", False),
        ("qwen2", "token-classification", "score", True),
        ("gpt2", "token-classification", "classifier", True),
        ("falcon", "question-answering", "qa_outputs", False),
        ("qwen3", "question-answering", "qa_outputs", False),
        ("mixtral", CLASSES, "score", False),
    ],
)
def test_a_new_head_on_a_language_model(parity, tmp_path, family, head, lacks, tied):
    """It needs permission, leaves the old head unread, and loads back here and there."""
    lm = tmp_path / "lm"
    make(parity, lm, family, "causal-lm", num_hidden_layers=1, tie_word_embeddings=tied)
    override = {"head": head}
    if head != "question-answering":
        override["id2label"] = ["bad", "fair", "good"]
    remedy = rf"lacks tensor '{lacks}.weight' .*; pass new_head=jax.random.key\(0\)"
    with pytest.raises(fmjax.FmjaxError, match=remedy):
        fmjax.from_pretrained(lm, override=override)
    key = jax.random.key(3)
    model, params = fmjax.from_pretrained(lm, override=override, new_head=key)
    _, before = fmjax.from_pretrained(lm)
    same(params, before, [lacks] if tied else [lacks, "lm_head"])
    assert params[lacks]["kernel"].shape == (32, 2 if head == "question-answering" else 3)
    assert np.std(params[lacks]["kernel"]) > 0.05  # random

    out = tmp_path / "out"
    fmjax.save_pretrained(out, model, params)
    again, read = fmjax.from_pretrained(out)
    assert again.config == model.config
    same(read, params)
    hf = make(parity, tmp_path / "hf", family, head, num_hidden_layers=1, num_labels=2)
    twin = reload(out, hf, head)
    if head != "question-answering":
        assert twin.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    compare(twin, again, read, ragged(parity.vocab))


def test_a_language_model_out_of_a_classifier(parity, tmp_path):
    make(parity, tmp_path / "untied", "mistral", CLASSES)
    override = {"head": "causal-lm"}
    with pytest.raises(fmjax.FmjaxError, match="lacks tensor 'lm_head.weight'.*new_head="):
        fmjax.from_pretrained(tmp_path / "untied", override=override)
    _, params = fmjax.from_pretrained(
        tmp_path / "untied", override=override, new_head=jax.random.key(0)
    )
    assert params["lm_head"]["kernel"].shape == (32, parity.vocab) and "score" not in params
    # A tied head is the table of the words, which is there.
    hf = make(parity, tmp_path / "tied", "gemma", CLASSES)
    model, params = fmjax.from_pretrained(tmp_path / "tied", override=override)
    fmjax.save_pretrained(tmp_path / "lm", model, params)
    twin = reload(tmp_path / "lm", make(parity, tmp_path / "hf", "gemma", "causal-lm"), "causal-lm")
    np.testing.assert_array_equal(
        twin.lm_head.weight.detach(), hf.model.embed_tokens.weight.detach()
    )
    compare(twin, model, params, ragged(parity.vocab))


def test_a_head_with_another_number_of_labels(parity, tmp_path):
    make(parity, tmp_path, "qwen3", CLASSES)
    override = {"id2label": ["no", "yes"]}
    with pytest.raises(fmjax.FmjaxError, match=r"'score.weight' has shape \[3, 32\]"):
        fmjax.from_pretrained(tmp_path, override=override)
    _, params = fmjax.from_pretrained(tmp_path, override=override, new_head=jax.random.key(0))
    assert params["score"]["kernel"].shape == (32, 2)


def test_a_missing_tensor_of_the_decoder_is_no_new_head(parity, tmp_path):
    make(parity, tmp_path, "gpt2", CLASSES)
    name = "transformer.h.1.mlp.c_fc.bias"
    rename(tmp_path, lambda n: "score.stray" if n == name else n)
    with pytest.raises(fmjax.FmjaxError, match=f"lacks tensor '{name}'.*check config.json"):
        fmjax.from_pretrained(tmp_path, new_head=jax.random.key(0))


def test_half_a_head_is_not_left_unread(parity, tmp_path):
    """A bias that the head here lacks; a token classifier read as one of sequences."""
    make(parity, tmp_path / "lm", "gpt2", "causal-lm")
    file = tmp_path / "lm" / "model.safetensors"
    bias = {"lm_head.bias": np.ones(parity.vocab, np.float32)}
    save_file(load_file(file) | bias, file, metadata={"format": "pt"})
    with pytest.raises(fmjax.FmjaxError, match="holds 'lm_head.bias'.*no parameter"):
        fmjax.from_pretrained(tmp_path / "lm")
    make(parity, tmp_path / "tags", "qwen2", "token-classification")
    override = {"head": CLASSES}
    with pytest.raises(fmjax.FmjaxError, match="holds 'score.bias'.*no parameter.*architectures"):
        fmjax.from_pretrained(tmp_path / "tags", override=override)
    key = jax.random.key(0)
    _, params = fmjax.from_pretrained(tmp_path / "tags", override=override, new_head=key)
    assert params["score"].keys() == {"kernel"}


@pytest.mark.parametrize(
    ("family", "head", "change"),
    [
        ("llama", None, lambda n: f"model.{n}"),
        ("gpt2", None, lambda n: f"transformer.{n}"),
        ("falcon", None, lambda n: f"transformer.{n}"),
        ("llama", "question-answering", lambda n: n.replace("transformer.", "model.")),
        ("gemma2", CLASSES, lambda n: n.removeprefix("model.")),
        ("falcon", "token-classification", lambda n: n.removeprefix("transformer.")),
    ],
)
def test_either_prefix(parity, tmp_path, family, head, change):
    make(parity, tmp_path, family, head)
    _, before = fmjax.from_pretrained(tmp_path)
    old = set(load_file(tmp_path / "model.safetensors"))
    rename(tmp_path, change)
    assert old != set(load_file(tmp_path / "model.safetensors"))
    same(fmjax.from_pretrained(tmp_path)[1], before)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("head", [None, CLASSES])
def test_fused_experts_under_either_prefix(parity, tmp_path, head, prefix):
    """As transformers keeps a mixture in memory, whatever stands on it."""
    hf = make(parity, tmp_path, "mixtral", head, num_hidden_layers=1)
    _, before = fmjax.from_pretrained(tmp_path)
    tensors = {
        k if k.startswith("score") else prefix + k.removeprefix("model."): v.numpy()
        for k, v in hf.state_dict().items()
    }
    assert f"{prefix}layers.0.mlp.experts.gate_up_proj" in tensors
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same(fmjax.from_pretrained(tmp_path)[1], before)


def test_a_bare_decoder_gets_any_head(parity, tmp_path):
    make(parity, tmp_path, "llama", None)
    model, before = fmjax.from_pretrained(tmp_path)
    assert model.config.head is None
    for head, path in {"causal-lm": "lm_head", CLASSES: "score"}.items():
        override = {"head": head}
        with pytest.raises(fmjax.FmjaxError, match=f"lacks tensor '{path}.weight'.*new_head="):
            fmjax.from_pretrained(tmp_path, override=override)
        key = jax.random.key(0)
        same(fmjax.from_pretrained(tmp_path, override=override, new_head=key)[1], before, [path])


def test_config_files_without_or_with_odd_architectures(parity, tmp_path):
    make(parity, tmp_path, "llama", "causal-lm")
    for named in (None, [], ["LLaMAForCausalLM"]):
        edit_config(tmp_path, architectures=named)
        assert fmjax.from_pretrained(tmp_path)[0].config.head == "causal-lm"
    edit_config(tmp_path, architectures=["LlamaForRewards"])
    message = "config.json: architectures names LlamaForRewards.*LlamaForCausalLM.*override"
    with pytest.raises(fmjax.FmjaxError, match=message):
        fmjax.from_pretrained(tmp_path)
    assert "lm_head" in fmjax.from_pretrained(tmp_path, override={"head": "causal-lm"})[1]


@pytest.mark.parametrize("head", [CLASSES, "question-answering"])
def test_half_precision_and_conversion_keep_every_bit(parity, tmp_path, head):
    make(parity, tmp_path / "hf", "llama", head, "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    fmjax.save_pretrained(tmp_path / "out", model, params, max_shard_size=9000)
    compare_files(tmp_path / "hf", tmp_path / "out")
    convert(tmp_path / "hf", tmp_path / "converted")
    compare_files(tmp_path / "hf", tmp_path / "converted")
    assert fmjax.from_pretrained(tmp_path / "converted")[0].config == model.config


def test_a_new_head_on_a_mesh(parity, tmp_path):
    make(parity, tmp_path, "qwen2", "causal-lm")
    model, params = fmjax.from_pretrained(
        tmp_path,
        mesh=fmjax.make_mesh(data=4, fsdp=2),
        rules=(("vocab", None), *fmjax.parallel.DEFAULT_RULES),  # 61 is odd
        override={"head": CLASSES, "id2label": ["a", "b", "c"]},
        new_head=jax.random.key(0),
    )
    assert params["score"]["kernel"].addressable_shards[0].data.shape == (16, 3)
    assert flatten(params).keys() == flatten(fmjax.abstract_params(model)).keys()
