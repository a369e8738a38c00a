"""Real steps compiled for GPUs that are not there; needs JAX's CUDA plugin, and no GPU."""

import importlib.util

import pytest

from fmjax.plan import CHIPS, describe, parse
from fmjax.plan.gpu_targets import target_config
from fmjax.recipes.plan import Case, plan_case

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax[cuda12] is not installed"
)
OVERRIDE = (
    "num_hidden_layers=2",
    "hidden_size=256",
    "intermediate_size=512",
    "num_attention_heads=2",
    "num_key_value_heads=2",
    "head_dim=128",
    "vocab_size=1024",
)


@pytest.mark.parametrize("name", ["h100", "a100"])
def test_a_gpu_is_described_by_its_published_figures(name: str) -> None:
    text = target_config(CHIPS[name])
    assert text.count("{") == text.count("}") == 4
    assert f"memory_bandwidth: {CHIPS[name].bandwidth:.0f}" in text


@needs_plugin
@pytest.mark.parametrize("text", ["h100:8", "a100:1"])
def test_devices_are_as_many_as_gpus(text: str) -> None:
    topology = parse(text)
    devices = describe(topology)
    assert len(devices) == topology.count
    assert {d.platform for d in devices} == {"gpu"}


@needs_plugin
def test_a_training_step_on_eight_gpus() -> None:
    case = Case("llama-7b", "h100:8", 8, 256, attention="xla", mesh="fsdp=8", override=OVERRIDE)
    result = plan_case(case)
    assert result.fits and result.mesh == {"fsdp": 8}
    assert set(result.collective_bytes) >= {"all-gather"}
    assert sum(vars(result.memory).values()) == result.hbm_bytes_per_device
    assert result.notes == ()
