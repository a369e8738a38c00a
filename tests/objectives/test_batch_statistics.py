"""Running statistics through whole steps: as torch's training loop leaves them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

import fmjax
from fmjax.convert import param_items
from fmjax.core.errors import ConfigError
from fmjax.models.registry import build, get_family
from fmjax.models.resnet.config import ResNetConfig
from fmjax.nn.projection import WithHead
from fmjax.nn.projection_mlp import ProjectionMLP
from fmjax.objectives import DINO, Augmented, BatchStatistics, SimCLR, with_batch_statistics
from fmjax.train import lars, make_step

ATOL = 1e-5
CONFIG = {"embedding_size": 4, "hidden_sizes": (4, 8), "depths": (1, 1), "layer_type": "basic"}


class Classes:
    """Cross-entropy of classes; a bound on the classifier's bias, to see `project` passed on."""

    unit = "examples"

    def init(self, variables):
        return {}

    def loss(self, apply, variables, extra, batch, rng):
        rngs = {} if rng is None else {"rngs": {"dropout": rng}}
        logits = apply(variables, pixel_values=batch["pixel_values"], **rngs).logits
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][:, None], -1)
        weight = jnp.float32(len(logits))
        return -jnp.sum(chosen), weight, {"loss": (-jnp.sum(chosen), weight)}, extra


def batches(steps, rows=8):
    rng = np.random.RandomState(1)
    return [
        {
            "pixel_values": rng.randn(rows, 32, 32, 3).astype(np.float32) * (1 + step),
            "labels": rng.randint(0, 3, rows).astype(np.int32),
        }
        for step in range(steps)
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_torchs(tmp_path, accumulate):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.ResNetConfig(**CONFIG, num_labels=3)
    hf = transformers.ResNetForImageClassification(config).train()
    hf.save_pretrained(tmp_path)
    model, params = fmjax.from_pretrained(tmp_path)
    variables = {"params": params}
    objective = with_batch_statistics(Classes(), variables)
    assert isinstance(objective, BatchStatistics) and objective.unit == "examples"
    step = make_step(model, objective, optax.sgd(0.05), clip_norm=None, accumulate=accumulate)
    state = step.init(variables, jax.random.key(0))

    optimizer = torch.optim.SGD(hf.parameters(), 0.05)
    for batch in batches(2):
        state, metrics = step(state, batch)
        optimizer.zero_grad()
        images = torch.tensor(np.moveaxis(batch["pixel_values"], -1, 1))
        labels = torch.tensor(batch["labels"]).long()
        losses = []
        for part in range(accumulate):
            rows = slice(part, None, accumulate)
            logits = hf(pixel_values=images[rows]).logits
            losses.append(torch.nn.functional.cross_entropy(logits, labels[rows]) / accumulate)
            losses[-1].backward()
        optimizer.step()
        np.testing.assert_allclose(metrics["loss"], sum(losses).item(), rtol=1e-5)

    rows = get_family("resnet").rows(model.config)
    got = {i.name: i.read() for i in param_items(rows, state.variables["params"])}
    for name, x in hf.state_dict().items():
        np.testing.assert_allclose(got[name], x, rtol=1e-5, atol=ATOL, err_msg=name)
    assert got["resnet.embedder.embedder.normalization.num_batches_tracked"] == 2 * accumulate
    # An evaluation reads the running statistics.
    batch = batches(1)[0]
    with torch.no_grad():
        images = torch.tensor(np.moveaxis(batch["pixel_values"], -1, 1))
        logits = hf.eval()(pixel_values=images).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(batch["labels"]).long())
    total, weight = step.evaluate(state, batch)["loss"]
    np.testing.assert_allclose(total / weight, expected, rtol=1e-5)


def test_simclr_learns_with_lars_and_leaves_no_part_without_the_others():
    backbone = build(ResNetConfig(**CONFIG, small_images=True))
    model = WithHead(backbone, ProjectionMLP(8, 16, 3), pool="pooler")
    x = np.random.RandomState(2).randn(8, 1, 8, 8, 3)
    # Two views of a picture differ by noise.
    views = x + 0.3 * np.random.RandomState(3).randn(8, 2, 8, 8, 3)
    batch = {"pixel_values": views.astype(np.float32)}
    init = jax.jit(lambda key: model.init(key, jnp.zeros((2, 8, 8, 3)))["params"])
    variables = {"params": init(jax.random.key(0))}
    assert variables["params"]["head"]["norm_2"].keys() == {
        *("scale", "running_mean", "running_var", "num_batches_tracked")
    }
    objective = with_batch_statistics(SimCLR(), variables)
    assert not objective.decomposes
    for given in (objective, Augmented(objective, lambda key, batch: batch)):
        why = "SimCLR compares .* within BatchStatistics, which normalises each part by itself"
        with pytest.raises(ConfigError, match=why):
            make_step(model, given, lars(0.5), accumulate=2)
    step = make_step(model, objective, lars(0.5, trust_coefficient=0.02), clip_norm=None)
    state = step.init(variables, jax.random.key(1))
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3, losses
    assert state.variables["params"]["head"]["norm_0"]["num_batches_tracked"] == 12
    assert with_batch_statistics(SimCLR(), {"params": {"w": 1}}) == SimCLR()


def test_a_teacher_runs_on_averaged_statistics():
    evaluated = []

    def apply(variables, pixel_values, rngs=None, mutable=()):
        mean = variables["params"]["running_mean"]
        kernel = variables["params"]["head"]["last_layer"]["kernel"]
        x = jnp.mean(pixel_values, (1, 2))
        if rngs is None:
            assert not mutable
            evaluated.append(mean)
            return types.SimpleNamespace(image_embeds=(x - mean) @ kernel)
        batch = jnp.mean(x, 0)
        output = types.SimpleNamespace(image_embeds=(x - batch) @ kernel)
        return output, {"batch_stats": {"running_mean": 0.5 * (mean + batch)}}

    kernel = jax.random.normal(jax.random.key(0), (3, 4))
    params = {"running_mean": jnp.zeros(3), "head": {"last_layer": {"kernel": kernel}}}
    objective = BatchStatistics(DINO(teacher_momentum=0.75))
    extra, teacher = objective.init({"params": params}), np.zeros(3)
    for step, batch in enumerate(np.random.RandomState(4).rand(3, 2, 2, 4, 4, 3)):
        batch = {"pixel_values": jnp.asarray(batch, jnp.float32)}
        teacher = 0.75 * teacher + 0.25 * params["running_mean"]
        key = jax.random.key(step)
        *_, extra = objective.loss(apply, {"params": params}, extra, batch, key)
        np.testing.assert_allclose(evaluated[-1], teacher, rtol=1e-6)
        params = objective.project({"params": params}, extra)["params"]
    assert len(evaluated) == 3 and np.abs(teacher).min() > 0
