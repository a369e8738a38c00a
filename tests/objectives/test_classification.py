"""Sequence and token classification against torch and transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from task_cases import (
    against_torch,
    bert,
    compare_model,
    given,
    mean_and_gradient,
    same_update,
    text_batch,
    toy,
    toy_params,
)
from torch.nn import functional as F

import fmjax
from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives import SequenceClassification, TokenClassification

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
RNG = np.random.RandomState(0)
LOGITS = jnp.asarray(RNG.randn(6, 3) * 2, jnp.float32)
CLASSES = np.array([2, 0, 1, 1, 0, 2], np.int32)
SEVERAL = RNG.randint(0, 2, (6, 3)).astype(np.float32)
NUMBERS = RNG.randn(6, 3).astype(np.float32)
CLASS_WEIGHTS = (0.5, 2.0, 1.25)
LABELS = {SINGLE: CLASSES, MULTI: SEVERAL, REGRESSION: NUMBERS}

head = given(logits="logits")


def rows(labels, weight=None):
    batch = {"input_ids": jnp.zeros((len(labels), 4), jnp.int32), "labels": labels}
    return batch if weight is None else batch | {"example_weight": np.asarray(weight, np.float32)}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
def test_cross_entropy_is_torchs(weights, smoothing):
    labels = CLASSES.copy()
    labels[3] = -100
    objective = SequenceClassification(class_weights=weights, label_smoothing=smoothing)
    w = None if weights is None else torch.tensor(weights)
    against_torch(
        objective,
        head,
        {"logits": LOGITS},
        rows(labels),
        lambda logits: F.cross_entropy(
            logits, torch.tensor(labels).long(), w, label_smoothing=smoothing
        ),
    )


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
def test_several_labels_are_torchs_binary_cross_entropy(weights):
    w = None if weights is None else torch.tensor(weights)
    metrics = against_torch(
        SequenceClassification(MULTI, weights),
        head,
        {"logits": LOGITS},
        rows(SEVERAL),
        lambda logits: F.binary_cross_entropy_with_logits(
            logits, torch.tensor(SEVERAL), pos_weight=w
        ),
    )
    said = np.asarray(LOGITS) > 0
    assert metrics["accuracy"] == pytest.approx(np.mean((said == SEVERAL).all(1)))
    hits = (said * SEVERAL).sum()
    assert metrics["micro_f1"] == pytest.approx(2 * hits / (said.sum() + SEVERAL.sum()))


@pytest.mark.parametrize("shape", [(6, 3), (6,), (6, 1)])
def test_regression_is_torchs_squared_error(shape):
    labels = NUMBERS[:, 0].reshape(shape) if len(shape) == 1 else NUMBERS[:, : shape[1]]
    logits = LOGITS if shape == (6, 3) else LOGITS[:, :1]
    metrics = against_torch(
        SequenceClassification(REGRESSION),
        head,
        {"logits": logits},
        rows(labels),
        lambda logits: F.mse_loss(logits.reshape(shape), torch.tensor(labels)),
    )
    error = np.abs(np.asarray(logits).reshape(shape) - labels).mean()
    assert metrics["mean_absolute_error"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_example_weights_repeat_and_drop_rows(kind):
    """Weight 2 counts a row twice and weight 0 never, in loss, gradient and metrics."""
    options = {"class_weights": CLASS_WEIGHTS, "label_smoothing": 0.1} if kind == SINGLE else {}
    objective = SequenceClassification(kind, **options)
    keep = np.array([0, 1, 1, 2, 4, 5])
    weighted = rows(LABELS[kind], [1, 2, 1, 0, 1, 1])
    value, grads, metrics = mean_and_gradient(objective, head, {"logits": LOGITS}, weighted)
    repeated, wanted, again = mean_and_gradient(
        objective, lambda v, **_: head({"params": {"logits": v["params"]["logits"][keep]}}, None),
        {"logits": LOGITS}, rows(LABELS[kind][keep]),
    )  # fmt: skip
    np.testing.assert_allclose(value, repeated, rtol=1e-6)
    np.testing.assert_allclose(grads["logits"], wanted["logits"], atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], again[name], rtol=1e-6, err_msg=name)


def test_tags_are_torchs_cross_entropy_of_the_labelled_tokens():
    logits = jnp.asarray(RNG.randn(2, 5, 3), jnp.float32)
    labels = np.array([[-100, 0, 2, -100, 1], [-100, 1, -100, -100, -100]], np.int32)
    metrics = against_torch(
        TokenClassification(CLASS_WEIGHTS, 0.1),
        head,
        {"logits": logits},
        rows(labels),
        lambda logits: F.cross_entropy(
            logits.reshape(-1, 3),
            torch.tensor(labels).long().reshape(-1),
            torch.tensor(CLASS_WEIGHTS),
            label_smoothing=0.1,
        ),
    )
    right = np.asarray(logits).argmax(-1)[labels >= 0] == labels[labels >= 0]
    assert metrics["accuracy"] == pytest.approx(right.mean())
    one, _, _ = mean_and_gradient(
        TokenClassification(), head, {"logits": logits}, rows(labels, [0, 1])
    )
    expected = F.cross_entropy(torch.tensor(np.asarray(logits[1, 1:2])), torch.tensor([1]))
    np.testing.assert_allclose(one, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_a_whole_bert_learns_as_in_transformers(tmp_path, kind):
    hf, model, params = bert(
        "BertForSequenceClassification", tmp_path, num_labels=3, problem_type=kind
    )
    batch = text_batch((6, 8)) | {"labels": LABELS[kind]}
    compare_model(SequenceClassification(kind), hf, model, params, batch)


def test_a_whole_bert_that_tags(tmp_path):
    hf, model, params = bert("BertForTokenClassification", tmp_path, num_labels=3)
    batch = text_batch((3, 8))
    labels = np.where(batch["attention_mask"] * (np.arange(8) % 3 > 0), RNG.randint(3), -100)
    batch["labels"] = labels.astype(np.int32)
    compare_model(TokenClassification(), hf, model, params, batch)


VARIANTS = ({"accumulate": 2}, {"mesh": fmjax.make_mesh(data=8)})
# Rows weigh differently, and so do the microbatches.
WEIGHT = np.array([1, 1, 1, 0, 2, 1, 0, 1], np.float32)


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION, "tags"])
def test_accumulation_and_a_mesh_give_the_same_update(kind):
    batch = text_batch((8, 5)) | {"example_weight": WEIGHT}
    if kind == "tags":
        objective = TokenClassification(CLASS_WEIGHTS, 0.1)
        apply = toy(lambda x, p: {"logits": x @ p["head"]})
        batch["labels"] = np.where(batch["attention_mask"], batch["input_ids"] % 3, -100)
    else:
        objective = SequenceClassification(kind, CLASS_WEIGHTS if kind == SINGLE else None)
        apply = toy(lambda x, p: {"logits": x.mean(1) @ p["head"]})
        batch["labels"] = np.concatenate([LABELS[kind], LABELS[kind][:2]])
    same_update(apply, objective, toy_params(), batch, *VARIANTS)


@pytest.mark.parametrize("label", [3, -1])
def test_an_impossible_label_is_not_learnt_from(label):
    labels = CLASSES.copy()
    labels[0] = label
    value, _, _ = mean_and_gradient(
        SequenceClassification(), head, {"logits": LOGITS}, rows(labels)
    )
    assert np.isnan(value)


@pytest.mark.parametrize(
    ("objective", "labels", "message"),
    [
        (SequenceClassification(), SEVERAL, r"labels is float32 of shape \(6, 3\); it must be int"),
        (SequenceClassification(), CLASSES[:, None], r"must be integer of shape \(6,\), the numb"),
        (SequenceClassification(MULTI), SEVERAL.astype(int), r"int32 .* must be floating of shape"),
        (SequenceClassification(REGRESSION), NUMBERS[:, 0], r"of shape \(6, 3\), the numbers to"),
        (SequenceClassification(), None, r"the batch has no labels; it needs integer of shape"),
    ],
)
def test_labels_that_do_not_fit_are_named(objective, labels, message):
    batch = {k: v for k, v in rows(CLASSES).items() if k != "labels"}
    batch |= {} if labels is None else {"labels": labels}
    with pytest.raises(DataError, match=message):
        objective.loss(head, {"params": {"logits": LOGITS}}, {}, batch, None)


def test_example_weight_is_one_number_a_row():
    with pytest.raises(DataError, match="example_weight is float32 of shape .5,.*of shape .6,"):
        SequenceClassification().loss(
            head, {"params": {"logits": LOGITS}}, {}, rows(CLASSES, np.ones(5)), None
        )


def test_a_model_with_another_head_is_named():
    batch = rows(CLASSES)
    for params, apply in (
        ({"logits": LOGITS[:, None]}, head),
        ({"x": LOGITS}, given(last_hidden_state="x")),
    ):
        with pytest.raises(ConfigError, match="the model needs the head 'sequence-classification'"):
            SequenceClassification().loss(apply, {"params": params}, {}, batch, None)
    objective = SequenceClassification(class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="class_weights has 2 entries and the model 3 outputs"):
        objective.loss(head, {"params": {"logits": LOGITS}}, {}, batch, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(problem_type="ranking"), "'ranking' is unknown; choose single_label"),
        (dict(label_smoothing=1.5), "label_smoothing=1.5 must be in"),
        (dict(problem_type=MULTI, label_smoothing=0.1), "is for single_label_classification"),
        (dict(problem_type=REGRESSION, class_weights=(1.0,)), "a regression has no classes"),
        (dict(class_weights=(1.0, -1.0)), "must be finite and not negative"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        SequenceClassification(**options)
