"""CLIP's, SigLIP's and SimCLR's losses against torch, in every form, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quick import QUICK

from fmjax.core import logical
from fmjax.core.errors import ConfigError, DataError, ShardingError
from fmjax.objectives import (
    ContrastiveImageText,
    SigmoidImageText,
    SimCLR,
    clip_loss,
    nt_xent_loss,
    siglip_loss,
)
from fmjax.objectives.pairs import chosen_form
from fmjax.parallel import DEFAULT_RULES, make_mesh

ATOL = 1e-5
B, D = 24, 5
TEMPERATURE = 0.2
WEIGHTS = np.ones(B, np.float32)
WEIGHTS[[3, 11, 23]] = 0  # These only fill the batch.
WEIGHTS[5] = 2.5


@functools.cache
def meshes():
    return {
        "one device": None,
        "eight": make_mesh(),
        "data 2, fsdp 2, tensor 2": make_mesh(fsdp=2, tensor=2),
    }


def inputs(B=B, D=D):
    rng = np.random.RandomState(0)
    return {
        "x": jnp.asarray(rng.randn(B, D), jnp.float32),
        "y": jnp.asarray(rng.randn(B, D), jnp.float32),
        "logit_scale": jnp.float32(np.log(7.0)),
        "logit_bias": jnp.float32(-1.3),
    }


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def ours(name, p, weight, **options):
    x, y = unit(p["x"]), unit(p["y"])
    if name == "clip":
        return clip_loss(x, y, p["logit_scale"], weight, **options)
    if name == "siglip":
        return siglip_loss(x, y, p["logit_scale"], p["logit_bias"], weight, **options)
    return nt_xent_loss(x, y, jnp.exp(-p["logit_scale"]), weight, **options)


def theirs(name, p, weight):
    """As the originals write it, over the rows that are real."""
    kept = weight != 0
    x, y = (F.normalize(p[k], dim=-1)[kept] for k in "xy")
    weight, n = weight[kept], int(kept.sum())
    factor, own = p["logit_scale"].exp(), torch.arange(n)
    if name == "clip":
        logits = factor * x @ y.T
        each = [F.cross_entropy(a, own, reduction="none") for a in (logits, logits.T)]
        losses = sum(each) / 2
    elif name == "siglip":
        logits = factor * x @ y.T + p["logit_bias"]
        losses = -F.logsigmoid((2 * torch.eye(n) - 1) * logits).sum(-1)
    else:
        z = torch.cat([x, y])
        logits = (factor * z @ z.T).masked_fill(torch.eye(2 * n, dtype=bool), -1e9)
        losses = F.cross_entropy(logits, torch.cat([own + n, own]), reduction="none")
        losses = losses.reshape(2, n).mean(0)
    return (losses * weight).sum() / weight.sum()


@functools.cache
def expected(name):
    p = {
        k: torch.tensor(np.asarray(v, np.float64), requires_grad=True) for k, v in inputs().items()
    }
    loss = theirs(name, p, torch.tensor(WEIGHTS, dtype=torch.float64))
    loss.backward()
    return loss.item(), {k: v.grad.numpy() for k, v in p.items() if v.grad is not None}


def value_and_gradients(name, mesh, **options):
    def mean(p, weight):
        with logical.use(mesh, DEFAULT_RULES):
            total, weight, metrics = ours(name, p, weight, **options)
        return total / weight, {k: s / w for k, (s, w) in metrics.items()}

    run = jax.jit(jax.value_and_grad(mean, has_aux=True), compiler_options=QUICK)
    return run(inputs(), WEIGHTS)


@pytest.mark.parametrize("name", ["clip", "siglip", "simclr"])
@pytest.mark.parametrize(
    ("form", "mesh"),
    [
        ("local", "one device"),
        ("ring", "one device"),
        ("gathered", "eight"),
        ("ring", "eight"),
        ("ring", "data 2, fsdp 2, tensor 2"),
    ],
)
def test_every_form_is_the_original_in_value_and_gradient(name, form, mesh):
    # Chunks of 4 do not divide the 6 columns of a device of four.
    (loss, metrics), grads = value_and_gradients(name, meshes()[mesh], form=form, chunk=4)
    value, slopes = expected(name)
    np.testing.assert_allclose(loss, value, rtol=ATOL)
    for key, slope in slopes.items():
        np.testing.assert_allclose(grads[key], slope, rtol=0, atol=ATOL, err_msg=key)
        assert np.abs(slope).max() > 1e-3
    x, y = (unit(inputs()[k])[WEIGHTS != 0] for k in "xy")
    weight = WEIGHTS[WEIGHTS != 0]
    nearest = np.argmax(x @ y.T, 1) == np.arange(len(x))
    accuracy = metrics["accuracy" if name == "simclr" else "image_accuracy"]
    assert accuracy == pytest.approx((nearest * weight).sum() / weight.sum())


@pytest.mark.parametrize("name", ["clip", "siglip", "simclr"])
def test_a_pair_without_others_has_a_finite_gradient(name):
    for form in ("local", "ring"):
        weight = np.zeros(4, np.float32)
        weight[1] = 1

        def loss(p, weight=weight, form=form):
            return ours(name, p, weight, form=form)[0]

        value, grads = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(inputs(4))
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads.values())


def compiled_bytes(form, rows):
    mesh = meshes()["eight"]

    def loss(p, weight):
        with logical.use(mesh, DEFAULT_RULES):
            return ours("clip", p, weight, form=form, chunk=512)[0]

    rows_over_devices = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())
    of = lambda shape, at: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at)  # noqa: E731
    p = {k: of((rows, 4), rows_over_devices) for k in "xy"}
    p |= {"logit_scale": of((), whole)}
    weight = of((rows,), rows_over_devices)
    return jax.jit(jax.grad(loss)).lower(p, weight).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_the_ring_grows_with_the_batch_and_not_with_its_square():
    small, large = (compiled_bytes("ring", rows) for rows in (4096, 32768))
    gathered = compiled_bytes("gathered", 32768)
    print(f"temporaries a device: ring {small:,} at 4k, {large:,} at 32k; gathered {gathered:,}")
    # A device has 512 rows and then 4096, eight times as many, which meet 512 columns at once.
    assert large < 8.2 * small
    assert large < 3 * 4 * 4096 * 512
    assert gathered > 4 * 4096 * 32768


def test_the_form_follows_the_size_of_the_logits():
    assert (chosen_form(4096), chosen_form(4097)) == ("local", "ring")
    with logical.use(meshes()["eight"], DEFAULT_RULES):
        assert (chosen_form(8192), chosen_form(16384)) == ("gathered", "ring")


def test_what_cannot_be_compared_is_refused():
    weight, p = np.ones(6, np.float32), inputs(6)
    for objective in (ContrastiveImageText, SigmoidImageText, SimCLR):
        with pytest.raises(ConfigError, match="form 'star' is unknown; one of auto, local"):
            objective(form="star")
        with pytest.raises(ConfigError, match="chunk is 0"):
            objective(chunk=0)
    with pytest.raises(ConfigError, match="temperature=0 must be positive"):
        SimCLR(temperature=0)
    with pytest.raises(ConfigError, match="max_scale=0.5"):
        ContrastiveImageText(max_scale=0.5)
    with pytest.raises(DataError, match="are no pairs"):
        clip_loss(p["x"], p["y"][:5], 1.0, weight)
    for form in ("gathered", "ring"):
        with pytest.raises(ShardingError, match="axis 'batch' of size 6 does not divide"):
            with logical.use(meshes()["eight"], DEFAULT_RULES):
                clip_loss(p["x"], p["y"], 1.0, weight, form=form)
