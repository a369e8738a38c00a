"""DINO against the original's maths in torch, over steps and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from distillation_cases import (
    D,
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
from fmjax.nn.param import abstract
from fmjax.nn.projection import ProjectionHead, WithHead
from fmjax.objectives import DINO, Augmented
from fmjax.train import make_step, schedules


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Every program here runs a few times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        yield


TEMPERATURE = schedules.ramp(0.04, 0.07, 3)
MOMENTUM = schedules.cosine(0.9, 1.0, 4)
SETTINGS = DINO(0.1, TEMPERATURE, MOMENTUM, 0.8, freeze_last_layer=1)


def test_the_head_is_torchs_weight_norm():
    head = ProjectionHead(K, hidden=8, bottleneck=5, learned_scale=True)
    x = np.random.RandomState(0).randn(3, D).astype(np.float32)
    p = head.init(jax.random.key(0), x)["params"]
    p = jax.tree.map(lambda a: a * 3 + 0.1, p)
    theirs = to_torch(p, grad=True)
    v, scale = theirs["last_layer"]["kernel"], theirs["last_layer"]["scale"]
    linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, K, bias=False))
    weight = linear.parametrizations.weight
    with torch.no_grad():
        weight.original0.copy_(scale[:, None])
        weight.original1.copy_(v.T)
    y = torch.tensor(x)
    for i in range(3):
        layer = theirs[f"dense_{i}"]
        y = y @ layer["kernel"] + layer["bias"]
        y = torch.nn.functional.gelu(y) if i < 2 else y
    y = linear(torch.nn.functional.normalize(y, dim=-1))
    factor = torch.linspace(-1, 2, 3 * K).reshape(3, K)
    (y * factor).sum().backward()

    def loss(p):
        out = head.apply({"params": p}, x)
        return jnp.sum(out * factor.numpy()), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(p)
    np.testing.assert_allclose(out, y.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(
        grads["last_layer"]["kernel"], weight.original1.grad.numpy().T, atol=1e-5
    )
    np.testing.assert_allclose(
        grads["last_layer"]["scale"], weight.original0.grad.numpy()[:, 0], atol=1e-5
    )
    for i in range(3):
        close(grads[f"dense_{i}"], jax.tree.map(lambda t: t.grad, theirs[f"dense_{i}"]))


def original_loss(student, teacher, center, temperature):
    """Lists of [B, K], one for each crop; the first of the student's are the teacher's."""
    total, pairs = 0.0, 0
    for i, t in enumerate(teacher):
        q = torch.softmax((t - center) / temperature, -1).detach()
        for v, s in enumerate(student):
            if v != i:
                total += -(q * torch.log_softmax(s / 0.1, -1)).sum(-1).mean()
                pairs += 1
    return total / pairs


def original(steps, batches):
    """Yields (loss, student, teacher, center) after each step of plain gradient descent."""
    student = to_torch(params(), grad=True)
    teacher, center = to_torch(params()), torch.zeros(K)
    for t, batch in zip(range(steps), batches, strict=False):
        large = torch.tensor(batch["pixel_values"]).unbind(1)
        small = torch.tensor(batch["local_pixel_values"]).unbind(1)
        with torch.no_grad():
            theirs = [torch_head(teacher["head"], torch_tokens(teacher, x)[:, 0]) for x in large]
        ours = [
            torch_head(student["head"], torch_tokens(student, x)[:, 0]) for x in (*large, *small)
        ]
        temperature, momentum = float(TEMPERATURE(t)), float(MOMENTUM(t))
        loss = original_loss(ours, theirs, center, temperature)
        loss.backward()
        with torch.no_grad():
            center = center * 0.8 + torch.cat(theirs).mean(0) * 0.2
            if t == 0:
                student["head"]["last_layer"]["kernel"].grad.zero_()
            for p in jax.tree.leaves(student):
                if p.grad is not None:
                    p -= 0.5 * p.grad
                    p.grad = None
        yield loss, student, teacher, center
        teacher = average(teacher, student, momentum)


@pytest.fixture(scope="module")
def step():
    return make_step(model(), SETTINGS, optax.sgd(0.5), clip_norm=None)


def start(step):
    return step.init({"params": params()}, jax.random.key(0))


def test_three_steps_are_the_originals(step):
    """Loss, gradient, teacher, center, schedules, and prototypes that wait for a step."""
    state = start(step)
    batches = [crops(seed=i) for i in range(3)]
    for batch, (loss, student, teacher, center) in zip(batches, original(3, batches), strict=True):
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss.item(), atol=1e-5)
        close(state.variables["params"], student)
        close(state.extra["teacher"]["params"], teacher)
        close(state.extra["center"], center)
    assert int(state.extra["step"]) == 3
    moved = jnp.abs(state.variables["params"]["head"]["last_layer"]["kernel"]).sum()
    assert moved != jnp.abs(params()["head"]["last_layer"]["kernel"]).sum()


def test_entropies_are_those_of_the_targets_and_evaluation_moves_nothing(step):
    state, batch = start(step), crops()
    sums = step.evaluate(state, batch)
    loss, *_ = next(original(1, [batch]))
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], loss.item(), atol=1e-5)
    each, marginal = (sums[f"teacher_{n}"][0] / 4 for n in ("entropy", "marginal_entropy"))
    assert 0 < each < marginal < np.log(K) + 1e-5
    assert int(state.extra["step"]) == 0 and not np.any(state.extra["center"])


def test_over_devices_the_center_is_that_of_the_global_batch(step):
    batch = crops(B=8)
    batch["example_weight"] = np.array([1, 1, 0, 1, 1, 1, 2, 1], np.float32)
    mesh = fmjax.make_mesh(data=4, fsdp=2)
    spread = make_step(model(), SETTINGS, optax.sgd(0.5), clip_norm=None, mesh=mesh)
    one, many = start(step), start(spread)
    for _ in range(2):
        (one, a), (many, b) = step(one, batch), spread(many, batch)
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)  # noqa: E731
    jax.tree.map(same, (one.variables, one.extra, a), (many.variables, many.extra, b))


def test_rows_of_weight_zero_do_not_count():
    batch = crops()
    kept = {name: x[[0, 2, 3]] for name, x in batch.items()}
    batch["example_weight"] = np.array([1, 0, 1, 1], np.float32)
    variables = {"params": params()}
    extra = SETTINGS.init(variables)

    @jax.jit
    def loss(batch):
        key = jax.random.key(0)
        total, weight, metrics, new = SETTINGS.loss(model().apply, variables, extra, batch, key)
        return total / weight, {n: s / w for n, (s, w) in metrics.items()}, new["center"]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), loss(batch), loss(kept))


def test_the_backbone_stands_alone_among_the_parameters():
    m = model(separate=True)
    inputs = {"pixel_values": jnp.zeros((1, 4, 4, 3)), "patch_index": jnp.zeros((1, 1), int)}
    p = jax.jit(lambda: m.init(jax.random.key(0), **inputs))()["params"]
    assert set(p) == {"backbone", "head", "patch_head"}
    out = m.backbone.apply({"params": p["backbone"]}, **{"pixel_values": jnp.ones((2, 8, 8, 3))})
    assert out.last_hidden_state.shape == (2, 17, D)
    head = abstract(ProjectionHead(K), {"x": jnp.zeros((1, D))})
    assert head["last_layer"]["kernel"].axes == ("embed", "vocab")
    assert head["dense_1"]["kernel"].axes == ("mlp", "embed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_temperature": 0}, "student_temperature=0 must be positive"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0 must be positive"),
        ({"teacher_momentum": 1.1}, r"teacher_momentum=1.1 must be in \[0, 1\]"),
        ({"center_momentum": -0.1}, r"center_momentum=-0.1 must be in \[0, 1\]"),
        ({"freeze_last_layer": -1}, "freeze_last_layer=-1 must not be negative"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        DINO(**options)


def test_bad_models_and_batches_are_named():
    for pool in ("pooler", "mean"):
        poor = WithHead(model().backbone, model().head, pool=pool)
        with pytest.raises(ConfigError, match=f"pool='{pool}' must be 'cls', or 'pooler' for a b"):
            jax.eval_shape(lambda p=poor: p.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3))))
    with pytest.raises(ConfigError, match="no head/last_layer/kernel; wrap the encoder"):
        DINO().init({"params": params()["backbone"]})
    variables = {"params": params()}
    extra = DINO().init(variables)

    def loss(**batch):
        jax.eval_shape(lambda: DINO().loss(model().apply, variables, extra, batch, None))

    with pytest.raises(ConfigError, match="a single crop of an image has no other"):
        loss(pixel_values=np.zeros((2, 1, 4, 4, 3), np.float32))
    with pytest.raises(
        DataError, match=r"pixel_values is of shape .2, 4, 4, 3.; it must be \[B, V"
    ):
        loss(pixel_values=np.zeros((2, 4, 4, 3), np.float32))
    for objective in (DINO(), Augmented(DINO(), lambda key, batch: batch)):
        with pytest.raises(ConfigError, match="DINO compares .* accumulated; use accumulate=1"):
            make_step(model(), objective, optax.sgd(0.1), accumulate=2)
