"""Masked autoencoding: the loss by hand, the patches that it hides, what it refuses."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

import fmjax
from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError, DataError
from fmjax.models.vit_mae.config import ViTMAEConfig
from fmjax.objectives import MaskedAutoencoding
from fmjax.parallel import DEFAULT_RULES
from fmjax.train import adamw, freeze, make_step

PIXELS = np.random.default_rng(0).normal(size=(8, 8, 12, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).random((8, 6), np.float32)
LOGITS = np.random.default_rng(2).normal(size=(8, 6, 48)).astype(np.float32)


def predict(variables, pixel_values, noise, rngs=None):
    """A model that hides the four patches of each image with the highest noise."""
    ranks = jnp.argsort(jnp.argsort(noise, 1), 1)
    mask = (ranks >= 2).astype(jnp.float32)
    return SimpleNamespace(logits=variables["logits"], mask=mask)


def by_hand(logits, weights, normalised):
    """The loss in torch, in float64, patch by patch."""
    import torch

    total = 0
    for image, noise, predicted, weight in zip(PIXELS, NOISE, logits, weights, strict=True):
        patches = []
        for row in range(2):
            for column in range(3):
                patch = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                patch = torch.tensor(patch.reshape(-1), dtype=torch.float64)
                if normalised:
                    patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                patches.append(patch)
        hidden = np.argsort(noise)[2:]
        errors = [((predicted[i] - patches[i]) ** 2).mean() for i in hidden]
        total = total + weight * sum(errors) / 4
    return total


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradient_by_hand(normalised, weighted):
    import torch

    objective = MaskedAutoencoding(4, normalised)
    weights = np.array([1, 0, 1, 0.5, 1, 1, 2, 0], np.float32) if weighted else np.ones(8)
    batch = {"pixel_values": jnp.asarray(PIXELS), "noise": jnp.asarray(NOISE)}
    if weighted:
        batch["example_weight"] = jnp.asarray(weights)

    def loss(logits):
        total, weight, metrics, _ = objective.loss(predict, {"logits": logits}, {}, batch, None)
        return total, (weight, metrics)

    (total, (weight, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(LOGITS))
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    expected = by_hand(logits, weights, normalised)
    expected.backward()
    np.testing.assert_allclose(total, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(weight, weights.sum())
    np.testing.assert_allclose(grad, logits.grad, rtol=1e-5, atol=1e-7)
    assert metrics["loss"] == (total, weight)


def test_an_evaluation_hides_the_same_patches_and_a_step_others():
    seen = []

    def spy(variables, pixel_values, noise, rngs=None):
        seen.append((np.asarray(noise), rngs))
        return predict(variables, pixel_values, noise)

    batch, variables = {"pixel_values": jnp.asarray(PIXELS)}, {"logits": LOGITS}
    for key in (None, None, jax.random.key(0), jax.random.key(1)):
        MaskedAutoencoding(4).loss(spy, variables, {}, batch, key)
    noises = [noise for noise, _ in seen]
    np.testing.assert_array_equal(noises[0], noises[1])
    assert (noises[2] != noises[3]).all() and (noises[2] != noises[0]).all()
    assert [rngs is None for _, rngs in seen] == [True, True, False, False]


def test_what_does_not_fit():
    variables = {"logits": LOGITS}
    batch = {"pixel_values": jnp.asarray(PIXELS)}
    with pytest.raises(DataError, match="the batch has no pixel_values"):
        MaskedAutoencoding(4).loss(predict, variables, {}, {}, None)
    with pytest.raises(DataError, match="8 × 12 are not made of whole patches of 5 × 5"):
        MaskedAutoencoding(5).loss(predict, variables, {}, batch, None)
    with pytest.raises(ConfigError, match="give the objective its patch_size"):
        MaskedAutoencoding(2).loss(predict, variables, {}, batch, None)
    with pytest.raises(ConfigError, match="has no logits of 3 dimensions"):
        objective = MaskedAutoencoding(4)
        objective.loss(lambda *a, **k: SimpleNamespace(mask=1), variables, {}, batch, None)
    with pytest.raises(ConfigError, match="must be a positive number of pixels"):
        MaskedAutoencoding(0)


def test_a_mesh_of_eight_and_what_is_not_trained():
    config = ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=(8, 12),
        patch_size=4,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        mask_ratio=0.5,
        head="pretraining",
    )
    model = fmjax.build(config, remat="full")
    objective = MaskedAutoencoding(4)
    batch = {"pixel_values": PIXELS, "noise": NOISE}
    found = []
    for mesh in (None, fmjax.make_mesh(data=2, fsdp=2, tensor=2)):
        params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)

        def loss(params, mesh=mesh):
            with logical.use(mesh, DEFAULT_RULES):
                return objective.loss(model.apply, {"params": params}, {}, batch, None)[0]

        found.append(jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params))
    (value, grads), (other, others) = found
    np.testing.assert_allclose(value, other, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, others)
    step = make_step(model, objective, adamw(1e-2), trainable=freeze(*objective.frozen))
    trained, frozen = map(tree.flatten, step.split({"params": params}))
    tables = {f"params/{above}position_embeddings/table" for above in ("", "decoder/")}
    assert frozen.keys() == tables and not tables & trained.keys()
