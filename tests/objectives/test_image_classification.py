"""Classification of images against torch, and augmentation within the step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from quick import QUICK

from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives import Augmented, ImageClassification
from fmjax.train import make_step

B, N = 6, 7
ATOL = 1e-5


def apply(variables, pixel_values, rngs=None):
    """A linear classifier of the mean colour; logits [B, N]."""
    x = jnp.mean(pixel_values, (1, 2))
    if rngs:
        x *= jax.random.bernoulli(rngs["dropout"], 0.9, x.shape) / 0.9
    return types.SimpleNamespace(logits=x @ variables["params"]["kernel"])


@pytest.fixture(scope="module")
def case():
    rng = np.random.RandomState(0)
    params = {"kernel": jnp.asarray(rng.randn(3, N) * 3, jnp.float32)}
    images = rng.rand(B, 4, 5, 3).astype(np.float32)
    shares = rng.rand(B, N).astype(np.float32)
    return params, images, shares / shares.sum(1, keepdims=True)


def value(objective, params, batch, rng=None):
    def loss(params):
        total, weight, metrics, _ = objective.loss(apply, {"params": params}, {}, batch, rng)
        return total / weight, {name: s / w for name, (s, w) in metrics.items()}

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(params)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs(case, soft, smoothing):
    params, images, shares = case
    labels = shares if soft else np.array([0, 6, 2, 3, -100, 1], np.int32)
    batch = {"pixel_values": images, "labels": labels}
    (loss, metrics), grads = value(ImageClassification(smoothing), params, batch)
    kernel = torch.tensor(np.asarray(params["kernel"]), requires_grad=True)
    logits = torch.tensor(images).mean((1, 2)) @ kernel
    target = torch.tensor(labels) if soft else torch.tensor(labels).long()
    wanted = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), rtol=ATOL)
    np.testing.assert_allclose(grads["kernel"], kernel.grad.numpy(), atol=ATOL)
    known = np.ones(B, bool) if soft else labels != -100
    true = (labels.argmax(1) if soft else labels)[known]
    order = np.argsort(-logits.detach().numpy()[known], 1)
    assert metrics["accuracy"] == pytest.approx((order[:, 0] == true).mean())
    top5 = (order[:, :5] == true[:, None]).any(1).mean()
    assert metrics["top5_accuracy"] == pytest.approx(top5)


def test_rows_of_weight_zero_do_not_count(case):
    params, images, shares = case
    rows = np.array([1, 0, 1, 1, 0, 1], np.float32)
    for labels in (shares, np.arange(B, dtype=np.int32)):
        batch = {"pixel_values": images, "labels": labels}
        kept = {name: x[rows > 0] for name, x in batch.items()}
        weighted = value(ImageClassification(), params, batch | {"example_weight": rows})
        alone = value(ImageClassification(), params, kept)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ATOL), weighted, alone)


def test_what_is_not_a_number_is_not_accurate(case):
    params, images, shares = case
    images = images.copy()
    images[:3] = np.nan
    for labels in (shares, shares.argmax(1).astype(np.int32)):
        batch = {"pixel_values": images, "labels": labels}
        wanted = value(ImageClassification(), params, {k: x[3:] for k, x in batch.items()})[0][1]
        metrics = value(ImageClassification(), params, batch)[0][1]
        for name in ("accuracy", "top5_accuracy"):
            np.testing.assert_allclose(metrics[name], wanted[name] / 2, rtol=ATOL)


def darken(key, batch):
    factor = jax.random.uniform(key, batch["image"].shape[:1])
    return {"pixel_values": factor[:, None, None, None] * batch["image"], "labels": batch["labels"]}


def plain(batch):
    return {"pixel_values": batch["image"], "labels": batch["labels"]}


def test_augmentation_happens_in_training_only(case):
    params, images, _ = case
    raw = {"image": images, "labels": np.arange(B, dtype=np.int32)}
    objective = Augmented(ImageClassification(), darken, plain)
    assert objective.unit == "examples"
    # What the objective does not say, this one does not either.
    assert not any(hasattr(objective, name) for name in ("decomposes", "project", "embed"))
    key = jax.random.key(0)
    augment, dropout = jax.random.split(key)
    wanted = value(ImageClassification(), params, darken(augment, raw), dropout)
    ours = value(objective, params, raw, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ATOL), ours, wanted)
    evaluated = value(objective, params, raw)
    wanted = value(ImageClassification(), params, plain(raw))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ATOL), evaluated, wanted)

    step = make_step(apply, objective, optax.sgd(0.1))
    state = step.init({"params": jax.tree.map(jnp.array, params)}, key)
    state, metrics = step(state, raw)
    assert np.isfinite(metrics["loss"]) and metrics["weight"] == B


def test_bad_batches_and_settings_are_named(case):
    params, images, shares = case
    objective = ImageClassification()

    def loss(**batch):
        objective.loss(apply, {"params": params}, {}, batch, None)

    with pytest.raises(DataError, match=r"labels are missing; .* floats of shape \(6, 7\)"):
        loss(pixel_values=images)
    with pytest.raises(DataError, match=r"labels are float32 of shape \(6, 5\)"):
        loss(pixel_values=images, labels=shares[:, :5])
    with pytest.raises(DataError, match=r"pixel_values is missing; it must be \[B, H, W, C\]"):
        loss(image=images, labels=shares)
    one = {"kernel": params["kernel"][:, :1]}
    for labels in (np.zeros(B, np.int32), np.ones((B, 1), np.float32)):
        with pytest.raises(ConfigError, match="needs two classes or more"):
            batch = {"pixel_values": images, "labels": labels}
            objective.loss(apply, {"params": one}, {}, batch, None)
    with pytest.raises(ConfigError, match="label_smoothing=2 must be in"):
        ImageClassification(2)
