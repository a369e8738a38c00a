"""DINOv2's parts and the whole against the original's maths in torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from distillation_cases import (
    K,
    average,
    close,
    crops,
    model,
    params,
    to_torch,
    torch_head,
    torch_tokens,
)
from quick import QUICK

import fmjax
from fmjax.core.errors import ConfigError, DataError
from fmjax.data.augment import block_masks
from fmjax.objectives import DINOv2
from fmjax.objectives.ibot import masked_patches
from fmjax.objectives.koleo import koleo_losses
from fmjax.objectives.sinkhorn import sinkhorn
from fmjax.train import make_step


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Every program here runs a few times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        yield


B, N = 4, 16


def masked_crops(rows=B, seed=0):
    batch = crops(B=rows, seed=seed)
    mask = block_masks(jax.random.key(seed), rows * 2, (4, 4), 0.5, (0.2, 0.5))
    return batch | {"bool_masked_pos": np.asarray(mask).reshape(rows, 2, N)}


def torch_sinkhorn(logits, temperature):
    """The original's, of [R, K] on one device."""
    q = torch.exp(logits.double() / temperature).t()
    K_, R = q.shape
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True)
        q /= K_
        q /= q.sum(0, keepdim=True)
        q /= R
    return (q * R).t().float()


def torch_koleo(x):
    x = torch.nn.functional.normalize(x, eps=1e-8, dim=-1)
    dots = (x @ x.t()).fill_diagonal_(-1).detach()
    distance = torch.nn.PairwiseDistance(2, eps=1e-8)(x, x[dots.argmax(1)])
    return -torch.log(distance + 1e-8)


def test_sinkhorn_is_the_originals_and_leaves_padding_out():
    x = np.random.RandomState(0).uniform(-1, 1, (12, K)).astype(np.float32)
    real = np.arange(12) % 3 != 1
    ours = jax.jit(sinkhorn)(x, 0.05, real.astype(np.float32))
    np.testing.assert_allclose(ours[real], torch_sinkhorn(torch.tensor(x[real]), 0.05), atol=1e-5)
    np.testing.assert_array_equal(ours[~real], 0)
    # Nothing overflows, and rows without anything are 0.
    hot = jax.jit(sinkhorn)(x * 1000, 0.05, real.astype(np.float32))
    assert np.isfinite(hot).all()
    np.testing.assert_array_equal(jax.jit(sinkhorn)(x, 0.05, np.zeros(12)), 0)


def test_koleo_is_the_originals():
    x = np.random.RandomState(0).randn(7, 5).astype(np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    losses = torch_koleo(theirs)
    losses.mean().backward()

    def mean(x):
        ours = koleo_losses(x)
        return jnp.mean(ours), ours

    (_, ours), grad = jax.jit(jax.value_and_grad(mean, has_aux=True))(x)
    np.testing.assert_allclose(ours, losses.detach(), atol=1e-5)
    np.testing.assert_allclose(grad, theirs.grad, atol=1e-5)
    weight = np.array([1, 1, 0, 1, 1, 0, 1], np.float32)
    some = jax.jit(koleo_losses)(x, weight)[weight > 0]
    np.testing.assert_allclose(some, torch_koleo(torch.tensor(x[weight > 0])), atol=1e-5)


@pytest.mark.parametrize("weight", [[0, 0, 0, 1], [1, 0, 0, 0]])
def test_a_row_without_a_neighbour_has_no_loss(weight):
    x = np.random.RandomState(1).randn(4, 5).astype(np.float32)
    weight = np.array(weight, np.float32)

    def loss(x):
        return jnp.sum(koleo_losses(x, weight) * weight)

    value, grad = jax.value_and_grad(loss)(x)
    assert value == 0 and not np.any(grad)
    assert koleo_losses(x[:1]) == 0


def test_masked_patches_are_found_and_counted():
    mask = np.zeros((3, 5), bool)
    mask[0, [1, 4]] = mask[2, [0, 2, 3]] = True
    index, weight, dropped = masked_patches(jnp.asarray(mask), jnp.array([1.0, 1, 2]))
    assert index.shape == (1, 15) and dropped == 0
    np.testing.assert_array_equal(index[0, :5], [1, 4, 10, 12, 13])
    np.testing.assert_allclose(weight[0, :6], [1 / 2, 1 / 2, 2 / 3, 2 / 3, 2 / 3, 0])
    index, weight, dropped = masked_patches(jnp.asarray(mask), jnp.ones(3), 0.25)
    assert index.shape == (1, 4) and dropped == 1 and (weight > 0).all()
    _, weight, dropped = masked_patches(jnp.asarray(mask), jnp.array([0.0, 1, 1]), 0.25)
    assert dropped == 0 and (weight > 0).sum() == 3


def original(objective, batches, separate):
    """Yields (loss, parts, student, teacher, centers) after each step of gradient descent."""
    student = to_torch(params(separate), grad=True)
    teacher = to_torch(params(separate))
    centers = [torch.zeros(K), torch.zeros(K)]
    patch_head = "patch_head" if separate else "head"

    def targets(logits, which):
        if objective.targets == "sinkhorn":
            return torch_sinkhorn(logits, 0.05)
        return torch.softmax((logits - centers[which]) / 0.05, -1)

    for batch in batches:
        large, small = (
            torch.tensor(batch[n]).unbind(1) for n in ("pixel_values", "local_pixel_values")
        )
        masks = torch.tensor(batch["bool_masked_pos"]).unbind(1)
        with torch.no_grad():
            seen = [torch_tokens(teacher, x) for x in large]
            seen_cls = torch.cat([torch_head(teacher["head"], x[:, 0]) for x in seen])
            seen_patches = torch.cat([x[:, 1:][m] for x, m in zip(seen, masks, strict=True)])
            seen_patches = torch_head(teacher[patch_head], seen_patches)
            q = targets(seen_cls, 0).chunk(2)
            q_patches = targets(seen_patches, 1)
        told = [torch_tokens(student, x, m) for x, m in zip(large, masks, strict=True)]
        ours = [x[:, 0] for x in told] + [torch_tokens(student, x)[:, 0] for x in small]
        ours = [torch_head(student["head"], x) for x in ours]
        dino, pairs = 0.0, 0
        for i in range(2):
            for v in range(5):
                if v != i:
                    dino += -(q[i] * torch.log_softmax(ours[v] / 0.1, -1)).sum(-1).mean()
                    pairs += 1
        patches = torch.cat([x[:, 1:][m] for x, m in zip(told, masks, strict=True)])
        logits = torch_head(student[patch_head], patches)
        each = -(q_patches * torch.log_softmax(logits / 0.1, -1)).sum(-1)
        counts = torch.cat([m.sum(1, keepdim=True).expand(-1, N)[m] for m in masks])
        images = 2 * len(large[0])
        parts = {
            "dino": dino / pairs,
            "ibot": (each / counts).sum() / images,
            "koleo": sum(torch_koleo(x[:, 0]).mean() for x in told),
        }
        loss = parts["dino"] + 0.7 * parts["ibot"] + 0.1 * parts["koleo"]
        loss.backward()
        with torch.no_grad():
            for i, x in enumerate((seen_cls, seen_patches)):
                centers[i] = centers[i] * 0.9 + x.mean(0) * 0.1
            for p in jax.tree.leaves(student):
                p -= 0.2 * p.grad
                p.grad = None
        yield loss, parts, student, teacher, centers
        teacher = average(teacher, student, 0.9)


@pytest.mark.parametrize(("targets", "separate"), [("sinkhorn", False), ("center", True)])
def test_two_steps_are_the_originals(targets, separate):
    objective = DINOv2(
        teacher_temperature=0.05, teacher_momentum=0.9, targets=targets, ibot_weight=0.7
    )
    step = make_step(model(separate), objective, optax.sgd(0.2), clip_norm=None)
    state = step.init({"params": params(separate)}, jax.random.key(0))
    batches = [masked_crops(seed=i) for i in range(2)]
    reference = original(objective, batches, separate)
    for batch, (loss, parts, student, teacher, centers) in zip(batches, reference, strict=True):
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss.item(), atol=1e-5)
        for name, part in parts.items():
            np.testing.assert_allclose(metrics[name], part.item(), atol=1e-5, err_msg=name)
        close(state.variables["params"], student)
        close(state.extra["teacher"]["params"], teacher)
        if targets == "center":
            close([state.extra["center"], state.extra["patch_center"]], centers)
    assert metrics["masked_dropped"] == 0


def test_over_devices_sums_are_global():
    """Also where each device has room for some of its patches only."""
    batch = masked_crops(8)
    batch["example_weight"] = np.array([1, 1, 0, 1, 1, 1, 2, 1], np.float32)
    mesh = fmjax.make_mesh(data=2, devices=jax.devices()[:2])

    def run(capacity, **options):
        objective = DINOv2(capacity=capacity)
        step = make_step(model(), objective, optax.sgd(0.2), clip_norm=None, **options)
        state = step.init({"params": params()}, jax.random.key(0))
        state, metrics = step(state, batch)
        return state.variables, state.extra, metrics

    alone = run(1.0)
    for other in (run(0.5, mesh=mesh),):
        assert other[2]["masked_dropped"] == 0
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, other)


def test_bad_settings_and_batches_are_named():
    with pytest.raises(ConfigError, match="targets='swav' is unknown; use 'sinkhorn' or 'center'"):
        DINOv2(targets="swav")
    with pytest.raises(ConfigError, match=r"capacity=0 must be in \(0, 1\]"):
        DINOv2(capacity=0)
    with pytest.raises(ConfigError, match="koleo_weight must not be negative"):
        DINOv2(koleo_weight=-1.0)
    objective, variables = DINOv2(), {"params": params()}
    extra, batch = objective.init(variables), masked_crops()

    def loss(**changes):
        jax.eval_shape(
            lambda: objective.loss(model().apply, variables, extra, batch | changes, None)
        )

    with pytest.raises(DataError, match=r"bool_masked_pos is bool of shape \(8, 16\); it must be"):
        loss(bool_masked_pos=batch["bool_masked_pos"].reshape(8, N))
    del batch["bool_masked_pos"]
    with pytest.raises(DataError, match=r"bool_masked_pos is missing; .* \(4, 2, patches\)"):
        loss()
