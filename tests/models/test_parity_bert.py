"""BERT and RoBERTa against transformers: every head's outputs, gradients, files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax.convert import open_directory, param_items
from fmjax.core.tree import flatten
from fmjax.hub import convert
from fmjax.models.registry import get_family
from fmjax.objectives import MaskedLM

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


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_export(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    compare(hf, model, params)
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


@pytest.mark.parametrize("name", ["bert-pretraining", "roberta-classes"])
def test_unscanned_layers_and_several_files(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert "layers_0" in params
    compare(hf, model, params)
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("name", ["bert", "bert-pretraining", "roberta-classes"])
def test_bfloat16_keeps_every_bit(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name, "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")  # the dtype of config.json
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def test_a_mesh_of_eight(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", "bert-masked-lm")
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    rules = (("vocab", None), *fmjax.parallel.DEFAULT_RULES)  # 61 is odd
    model, params = fmjax.from_pretrained(tmp_path / "hf", mesh=mesh, rules=rules)
    kernel = params["layers"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 16, 16)
    compare(hf, model, params)
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def gradients(hf, model, labels, loss):
    """Both libraries' gradients of a loss by every tensor of the file."""
    import torch

    # Without the row that is padded on the left: torch never gives a padding id's rows a gradient.
    inputs = {k: v[:2] for k, v in ragged(model.config).items()}
    hf.zero_grad()
    hf(**{k: torch.tensor(v) for k, v in (inputs | {"labels": labels}).items()}).loss.backward()
    expected = {name: p.grad.numpy() for name, p in hf.named_parameters()}
    batch = {k: jnp.asarray(v, jnp.int32) for k, v in inputs.items()}

    def check(params):
        grads = jax.jit(jax.grad(loss))(params, batch)
        rows = get_family(model.config.model_type).rows(model.config)
        got = {i.name: i.read() for i in param_items(rows, grads)}
        assert got.keys() == expected.keys()
        for name, grad in expected.items():
            np.testing.assert_allclose(got[name], grad, rtol=0, atol=ATOL, err_msg=name)
            assert np.abs(grad).max() > 1e-4 or name.endswith("key.bias"), name

    return check


@pytest.mark.parametrize("name", ["bert-masked-lm", "roberta-pad-three"])
def test_gradients_of_the_masked_lm(parity, tmp_path, name):
    hf = make(parity, tmp_path, name)
    model, params = fmjax.from_pretrained(tmp_path)
    labels = ragged(model.config)["input_ids"][:2]
    labels = np.where((np.arange(10) % 3 == 1) & (labels > 3), labels, -100)
    objective = MaskedLM(mask_token_id=3, vocab_size=model.config.vocab_size)

    def loss(params, batch):
        batch = batch | {"labels": jnp.asarray(labels, jnp.int32)}
        total, weight, _, _ = objective.loss(model.apply, {"params": params}, {}, batch, None)
        return total / weight

    gradients(hf, model, labels, loss)(params)


@pytest.mark.parametrize("name", ["bert-classes", "roberta-classes"])
def test_gradients_of_classification(parity, tmp_path, name):
    hf = make(parity, tmp_path, name)
    model, params = fmjax.from_pretrained(tmp_path)
    labels = np.array([2, 0])

    def loss(params, batch):
        log_probs = jax.nn.log_softmax(model.apply({"params": params}, **batch).logits)
        return -jnp.mean(log_probs[jnp.arange(2), labels])

    gradients(hf, model, labels, loss)(params)


# --- names in files, and heads that come and go --------------------------------------------------


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


def test_positions_of_roberta_skip_the_padding_id(parity, tmp_path):
    hf = make(parity, tmp_path, "roberta-pad-three")
    model, params = fmjax.from_pretrained(tmp_path)
    inputs = ragged(model.config)
    inputs["input_ids"][:, 4] = 3  # a padding id that is attended to
    expected = theirs(hf, inputs)["logits"]
    np.testing.assert_allclose(ours(model, params, inputs)[0].logits, expected, rtol=0, atol=ATOL)
    assert model.config.position_limit == 12


@pytest.mark.parametrize("name", ["bert-tags", "roberta-tags"])
def test_texts_packed_into_a_row_do_not_meet(parity, tmp_path, name):
    make(parity, tmp_path, name)
    model, params = fmjax.from_pretrained(tmp_path)
    start = 2 if name.startswith("roberta") else 0
    ids = np.random.default_rng(0).integers(4, 60, (2, 4))
    packed = {
        "input_ids": np.concatenate([ids[0], ids[1, :3], [model.config.pad_token_id]])[None],
        "segment_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 0]]),
    }
    together = ours(model, params, packed)[0].logits[0]
    places = {"position_ids": np.array([[0, 1, 2, 3, 0, 1, 2, 0]]) + start}
    given = ours(model, params, packed | places)[0].logits[0]
    np.testing.assert_allclose(together[:7], given[:7], rtol=0, atol=1e-6)
    apart = [ours(model, params, {"input_ids": x[None]})[0].logits[0] for x in (ids[0], ids[1, :3])]
    np.testing.assert_allclose(together[:7], np.concatenate(apart), rtol=0, atol=1e-5)


def test_dropout_acts_when_a_key_is_given(parity, tmp_path):
    make(parity, tmp_path, "roberta-classes")
    model, params = fmjax.from_pretrained(tmp_path)
    inputs = {"input_ids": jnp.full((2, 4), 5, jnp.int32)}

    def logits(key=None):
        rngs = {} if key is None else {"rngs": {"dropout": jax.random.key(key)}}
        return np.asarray(model.apply({"params": params}, **inputs, **rngs).logits)

    np.testing.assert_array_equal(logits(1), logits(1))
    assert np.abs(logits(1) - logits(2)).max() > 1e-3
    assert np.abs(logits(1) - logits()).max() > 1e-3


def test_inputs_of_another_shape_are_named(parity, tmp_path):
    make(parity, tmp_path, "bert")
    model, params = fmjax.from_pretrained(tmp_path)
    ids = jnp.ones((2, 4), jnp.int32)
    with pytest.raises(fmjax.FmjaxError, match=r"token_type_ids \(2, 3\) must have the shape"):
        model.apply({"params": params}, input_ids=ids, token_type_ids=ids[:, :3])
