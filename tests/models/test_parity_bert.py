"""BERT and RoBERTa against transformers: every head's outputs, gradients, exports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bert_cases import ATOL, CASES, compare, compare_export, make, ours, ragged, theirs

import fmjax
from fmjax.convert import param_items
from fmjax.models.registry import get_family
from fmjax.objectives import MaskedLM


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

    @jax.jit
    def apply(rngs):
        return model.apply({"params": params}, **inputs, rngs=rngs).logits

    def logits(key=None):
        return np.asarray(apply({} if key is None else {"dropout": jax.random.key(key)}))

    np.testing.assert_array_equal(logits(1), logits(1))
    assert np.abs(logits(1) - logits(2)).max() > 1e-3
    assert np.abs(logits(1) - logits()).max() > 1e-3


def test_inputs_of_another_shape_are_named(parity, tmp_path):
    make(parity, tmp_path, "bert")
    model, params = fmjax.from_pretrained(tmp_path)
    ids = jnp.ones((2, 4), jnp.int32)
    with pytest.raises(fmjax.FmjaxError, match=r"token_type_ids \(2, 3\) must have the shape"):
        model.apply({"params": params}, input_ids=ids, token_type_ids=ids[:, :3])
