"""Scaled-up settings: the stated table is the arithmetic's, and each fits its machine."""

import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import fmjax
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.parallel import DEFAULT_RULES, param_shardings, shard_batch
from fmjax.recipes.models import architecture, parse_mesh
from fmjax.recipes.objective import is_masked
from fmjax.recipes.scale import HEADER, MACHINES, estimate, line
from fmjax.recipes.training import schedule

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = {name: runpy.run_path(str(EXPERIMENTS / f"{name}.py")) for name in (
    "pretrain_kjv", "pretrain_bert_kjv",
)}  # fmt: skip
SCALES = [(name, scale) for name, values in FILES.items() for scale in values["SCALES"]]


@pytest.mark.parametrize("name", FILES)
def test_the_docstring_states_the_arithmetic(name):
    values = FILES[name]
    table = [HEADER, *(line(scale, settings) for scale, settings in values["SCALES"].items())]
    stated = [row.strip() for row in values["__doc__"].splitlines()]
    assert [row for row in table if row not in stated] == []


@pytest.mark.parametrize("name, scale", SCALES)
def test_it_fits_its_machine(name, scale):
    settings, machine = FILES[name]["SCALES"][scale], MACHINES[scale]
    config = architecture(settings.model, settings.override)
    mesh = parse_mesh(settings.hardware.mesh)
    assert mesh.size == machine.chips
    params = fmjax.abstract_params(fmjax.build(config))
    assert len(tree.flatten(param_shardings(params, mesh, DEFAULT_RULES))) > 10
    data, accumulate = settings.data, settings.optimization.accumulate
    row = jax.ShapeDtypeStruct((data.batch_size, data.sequence_length), np.int32)
    shard_batch({"rows": row}, mesh, DEFAULT_RULES, accumulate)
    assert data.sequence_length <= config.max_position_embeddings
    schedule(settings.optimization.completed(is_masked(config)))
    # Weights, gradients and Adam's moments in f32, split over the chips; the logits, their
    # softmax and its gradient in f32; with rematerialisation the inputs of every layer in bf16.
    tokens = data.batch_size * data.sequence_length // (machine.chips * accumulate)
    state = 16 * tree.count(params) / machine.chips
    logits = 3 * 4 * tokens * config.vocab_size
    inputs = 2 * tokens * config.hidden_size * config.num_hidden_layers
    assert settings.hardware.remat == "full"
    assert state + logits + inputs < 0.8 * machine.memory


def test_estimate():
    settings = FILES["pretrain_kjv"]["PRETRAIN"]
    settings = dataclasses.replace(settings, model="gpt2", override=())
    machine = dataclasses.replace(MACHINES["v5e-8"], chips=2, price=3.0)
    found = estimate(settings, machine)
    n, d = 124_439_808, 1200 * 8 * 256
    assert (found.params, found.tokens, found.flops) == (n, d, 6.0 * n * d)
    assert found.hours == pytest.approx(6 * n * d / (2 * 197e12 * 0.4) / 3600)
    assert found.dollars == pytest.approx(found.hours * 6)
    assert found.loss == pytest.approx(1.69 + 406.4 / n**0.34 + 410.7 / d**0.28)
    assert estimate(dataclasses.replace(settings, model="bert-base"), machine).loss is None
    with pytest.raises(ConfigError, match="gpt5: .*published size"):
        estimate(dataclasses.replace(settings, model="gpt5"), machine)
