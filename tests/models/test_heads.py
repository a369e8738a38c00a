"""Every head of every decoder against transformers: logits, gradients, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bert_cases import compare_files
from head_cases import ATOL, CASES, compare, make, ours, ragged, reload, theirs

import fmjax
from fmjax.convert import param_items
from fmjax.models.registry import get_family
from fmjax.nn import outputs

OUTPUTS = {
    None: outputs.DecoderOutput,
    "sequence-classification": outputs.SequenceClassifierOutput,
    "token-classification": outputs.TokenClassifierOutput,
    "question-answering": outputs.QuestionAnsweringOutput,
}


@pytest.mark.parametrize(("family", "head"), CASES)
def test_outputs_and_export(parity, tmp_path, family, head):
    hf = make(parity, tmp_path / "hf", family, head)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert model.config.head == head and model.config.num_labels == hf.config.num_labels
    inputs = ragged(parity.vocab)
    compare(hf, model, params, inputs)
    assert isinstance(ours(model, params, inputs), OUTPUTS[head])

    fmjax.save_pretrained(tmp_path / "out", model, params)
    compare_files(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out" / "generation_config.json").exists()
    again = reload(tmp_path / "out", hf, head)
    assert again.config.id2label == hf.config.id2label
    assert again.config.problem_type == hf.config.problem_type
    expected = theirs(hf, inputs)
    for name, value in theirs(again, inputs).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("gpt2", "token-classification"),
        ("llama", "sequence-classification"),
        ("qwen3", "question-answering"),
        ("mixtral", "sequence-classification"),
    ],
)
def test_gradients(parity, tmp_path, family, head):
    """Of the mean square of the logits, with respect to every tensor of the file."""
    import torch

    hf = make(parity, tmp_path, family, head)
    model, params = fmjax.from_pretrained(tmp_path)
    inputs = {k: v[:2] for k, v in ragged(parity.vocab).items()}
    token = inputs["attention_mask"].astype(bool)

    def chosen(out, where):
        x = out.start_logits + 2 * out.end_logits if hasattr(out, "start_logits") else out.logits
        return x[where] if x.shape[:2] == where.shape else x

    hf.zero_grad()
    out = hf(**{k: torch.tensor(v) for k, v in inputs.items()})
    chosen(out, torch.tensor(token)).square().mean().backward()
    grads = jax.jit(jax.grad(lambda p: jnp.square(chosen(ours(model, p, inputs), token)).mean()))(
        params
    )
    rows = get_family(family).rows(model.config)
    found = {i.name: i.read() for i in param_items(rows, grads)}
    if family == "mixtral":  # whose experts the reference keeps fused in memory
        found = {k: v for k, v in found.items() if "block_sparse_moe" not in k}
    parameters = dict(hf.named_parameters())
    assert len(found) > 10
    for name, grad in found.items():
        expected = parameters[name].grad.numpy()
        np.testing.assert_allclose(grad, expected, rtol=0, atol=ATOL, err_msg=name)
        assert np.abs(expected).max() > 1e-4 or name.endswith("k_proj.bias"), name


def test_which_token_is_the_last(parity, tmp_path):
    """The mask says it; without one pad_token_id, as in transformers; without that the end."""
    hf = make(parity, tmp_path, "llama", "sequence-classification", num_hidden_layers=1)
    model, params = fmjax.from_pretrained(tmp_path)
    inputs = ragged(parity.vocab)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    compare(hf, model, params, {"input_ids": ids})
    out = ours(model, params, inputs)
    expected = apply_score(params, out, [9, 5, 9])
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=ATOL)
    # Padding of packed rows.
    packed = ours(model, params, {"input_ids": ids, "segment_ids": mask})
    np.testing.assert_allclose(packed.logits, expected, rtol=0, atol=ATOL)
    # A text that ends in pad_token_id: its end counts, where the reference goes back.
    inputs["input_ids"][0, -1] = 0
    out = ours(model, params, inputs)
    np.testing.assert_allclose(out.logits, apply_score(params, out, [9, 5, 9]), rtol=0, atol=ATOL)
    back = apply_score(params, out, [8, 5, 9])
    np.testing.assert_allclose(theirs(hf, inputs)["logits"], back, rtol=0, atol=ATOL)
    model = fmjax.build(model.config.replace(pad_token_id=None))
    out = ours(model, params, {"input_ids": ids})
    np.testing.assert_allclose(out.logits, apply_score(params, out, [9, 9, 9]), rtol=0, atol=ATOL)


def apply_score(params, out, slots):
    x = np.asarray(out.last_hidden_state)[np.arange(len(slots)), slots]
    return x @ np.asarray(params["score"]["kernel"])


def test_no_head_computes_anything_over_the_vocabulary():
    cfg = dict(vocab_size=977, n_embd=16, n_head=2, n_layer=1, n_positions=8)
    for head in OUTPUTS:
        model = fmjax.build({"model_type": "gpt2", "head": head, **cfg})
        params = jax.tree.map(lambda s: s.struct(), fmjax.abstract_params(model))
        assert "lm_head" not in params
        ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        traced = jax.make_jaxpr(lambda p, i, model=model: model.apply({"params": p}, i))(
            params, ids
        )
        made = {v.aval.shape for e in traced.eqns for v in e.outvars}
        assert made and not any(977 in shape for shape in made)


def test_a_cache_and_kept_positions(parity, tmp_path):
    """A text in two parts: the last token stands in the second; there are no logits to keep."""
    make(parity, tmp_path, "mistral", "sequence-classification", num_hidden_layers=1)
    model, params = fmjax.from_pretrained(tmp_path)
    inputs = ragged(parity.vocab)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]

    @jax.jit
    def parts(params):
        _, cache = model.apply(
            {"params": params}, ids[:, :4], mask, cache_index=0, mutable=["cache"]
        )
        out, _ = model.apply(
            {"params": params, **cache}, ids[:, 4:], mask, cache_index=4, mutable=["cache"]
        )
        return out.logits

    whole = ours(model, params, inputs).logits
    np.testing.assert_allclose(parts(params), whole, rtol=0, atol=ATOL)
    with pytest.raises(fmjax.FmjaxError, match="logits_to_keep=1 is for head='causal-lm'"):
        jax.eval_shape(lambda p: model.apply({"params": p}, ids, logits_to_keep=1), params)


@pytest.mark.parametrize("head", OUTPUTS)
def test_routers_of_a_mixture_report_under_any_head(head):
    config = fmjax.presets()["mixtral-8x7b"].replace(head=head)
    model = fmjax.build(config)
    params = jax.tree.map(lambda s: s.struct(), fmjax.abstract_params(model))
    ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)

    def run(**options):
        return jax.eval_shape(lambda p, i: model.apply({"params": p}, i, **options), params, ids)

    assert [x.shape for x in run(output_router_logits=True).router_logits] == [(2, 5, 8)] * 32
    assert run().router_logits is None


def test_dropout_before_the_token_classifier():
    """0.1 where nothing is said; Falcon's hidden_dropout; the config's word first."""
    build = fmjax.build
    assert build("llama-7b").config.classifier_rate == 0.1
    assert build("gpt2").config.classifier_rate == 0.1
    assert build("falcon-7b").config.classifier_rate == 0.0
    assert build("falcon-7b", override={"classifier_dropout": 0.4}).config.classifier_rate == 0.4
    tiny = dict(n_embd=16, n_head=2, n_layer=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    override = tiny | {"head": "token-classification", "classifier_dropout": 0.5}
    model = build("gpt2", override=override)
    params = fmjax.init_params(model, jax.random.key(0))
    ids = np.ones((1, 3), np.int32)
    run = jax.jit(lambda p, rngs: model.apply({"params": p}, ids, rngs=rngs))
    out, still = run(params, {"dropout": jax.random.key(1)}), run(params, {})
    np.testing.assert_allclose(out.last_hidden_state, still.last_hidden_state, atol=1e-6)
    assert np.abs(out.logits - still.logits).max() > 0.01


@pytest.mark.parametrize("family", ["resnet-18", "clip-vit-b32", "siglip-b16-224"])
def test_dropout_before_classifiers_of_images(family):
    """None where nothing is said, as in transformers; the config's word first."""
    head = {"head": "image-classification", "id2label": ["a", "b"]}
    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                 image_size=32, patch_size=16)  # fmt: skip
    sizes = {"vision_config": small}
    if family == "resnet-18":
        sizes = dict(embedding_size=4, hidden_sizes=[4], depths=[1])
    assert fmjax.build(family, override=head | sizes).config.classifier_rate == 0.0
    model = fmjax.build(family, override=head | sizes | {"classifier_dropout": 0.5})
    params = fmjax.init_params(model, jax.random.key(0))
    pixels = np.random.RandomState(0).rand(4, 32, 32, 3).astype(np.float32)

    @jax.jit
    def run(seed):
        rngs, inputs = {"dropout": jax.random.key(seed)}, {"pixel_values": pixels}
        return model.apply({"params": params}, **inputs, rngs=rngs, mutable=["batch_stats"])[0]

    one, other = run(0), run(1)
    np.testing.assert_array_equal(one.last_hidden_state, other.last_hidden_state)
    assert np.abs(one.logits - other.logits).max() > 1e-3
