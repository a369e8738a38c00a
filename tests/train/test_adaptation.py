"""All that an adapter's optimizer may be made of, together, on a mesh, through a resumed run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fmjax
from fmjax.core import tree
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import (
    adamw,
    averaged,
    ema_params,
    evaluate,
    fit,
    freeze,
    freeze_layers,
    lora_plus,
    make_step,
    moments,
    with_ema,
)

GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
IDS = (np.arange(16) * np.arange(1, 9)[:, None] % 50).astype(np.int32)


class Same:
    """One batch, again and again."""

    def __next__(self):
        return {"input_ids": IDS}

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


@pytest.mark.slow
def test_int8_moments_lora_plus_frozen_parts_and_an_average(tmp_path):
    mesh = make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
    model = fmjax.build(GPT2 | {"n_positions": 16})
    params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
    spec = fmjax.peft.LoRA(rank=32, targets=("c_attn", "c_fc"))
    adapter = fmjax.peft.init(jax.random.key(1), spec, model, params)
    adapter = tree.map_with_path(
        lambda path, x: x if path.endswith("scale") else x.astype(jnp.bfloat16), adapter
    )
    adam = adamw(1e-3, moment_dtype="int8")
    step = make_step(
        model,
        CausalLM(),
        with_ema(optax.chain(adam, lora_plus(16), freeze_layers(1, 2)), 0.9),
        mesh=mesh,
        trainable=freeze(r"c_attn/lora_a$"),
    )
    before = tree.flatten(jax.device_get(adapter))

    def run(steps, out_dir):
        start = {"params": params, "adapter": jax.tree.map(jnp.copy, adapter)}
        return fit(
            step, step.init(start, jax.random.key(2)), Same(), steps=steps, out_dir=out_dir,
            evaluate=lambda state: evaluate(step, averaged(state), [next(Same())]), progress=False,
        )  # fmt: skip

    whole = run(6, tmp_path / "whole")
    run(3, tmp_path / "parts")
    parts = run(6, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.state.variables, parts.state.variables)
    jax.tree.map(np.testing.assert_array_equal, *(x.state.opt_state for x in (whole, parts)))

    mu = tree.flatten(whole.state.opt_state.inner[0].mu)
    assert "adapter/h/attn/c_attn/lora_a" not in mu
    assert isinstance(mu["adapter/h/mlp/c_fc/lora_b"], moments.Blockwise)
    for path, x in tree.flatten(whole.state.variables["adapter"]).items():
        if path.endswith("scale") or path.endswith("c_attn/lora_a"):
            np.testing.assert_array_equal(x, before[path])
        else:
            np.testing.assert_array_equal(x[0], before[path][0])
            assert x.dtype == jnp.bfloat16 and (np.asarray(x[1]) != before[path][1]).any(), path
    average = tree.flatten(ema_params(whole.state.opt_state))
    assert {x.dtype.name for x in average.values()} == {"float32"}
    # The average lags behind, on the way to a lower loss.
    first = evaluate(step, step.init({"params": params, "adapter": adapter}, jax.random.key(2)),
                     [next(Same())])["loss"]  # fmt: skip
    assert whole.metrics["loss"] < whole.metrics["eval_loss"] < first
