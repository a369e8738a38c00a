"""A plan's figures, on the virtual devices of the CPU: the same path but for the compiler."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fmjax
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.plan import Chip, Plan, Topology, hlo, plan, plan_traced
from fmjax.plan.result import write
from fmjax.plan.roofline import estimate
from fmjax.plan.traffic import tally
from fmjax.train import adamw, make_step

pytestmark = pytest.mark.optimised

CHIP = Chip("cpu", "cpu", 1e12, 1e12, 2**30, 1e11, 1e10, "made up")
TOPOLOGY = Topology("cpu:8", CHIP, 8, "")
FIELDS = {
    "hbm_bytes_per_device",
    "argument_bytes",
    "temp_bytes",
    "output_bytes",
    "alias_bytes",
    "flops_per_device",
    "hbm_traffic_bytes_per_device",
    "collective_bytes",
    "estimated_step_seconds",
    "bound_by",
    "model_flops_utilisation",
    "compile_seconds",
    "fits",
}


def step_of(layers: int, devices: int, **execution: Any) -> tuple[Any, Any, Any]:
    """(the training step of a small LLaMA, its abstract state, its abstract batch)."""
    model = fmjax.build(
        "llama-7b",
        override=dict(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            vocab_size=512,
        ),
        remat="full",
        **execution,
    )
    mesh = make_mesh(data=1, fsdp=devices, devices=jax.devices()[:devices])
    step = make_step(model, CausalLM(), adamw(1e-3), mesh=mesh)
    state = step.abstract_state({"params": fmjax.abstract_params(model)})
    return step, state, {"input_ids": jax.ShapeDtypeStruct((16, 64), jnp.int32)}


def planned(topology: Topology = TOPOLOGY) -> Plan:
    settings = {"model": "small"}
    return plan(*step_of(4, 8), topology=topology, model_flops=8e9, settings=settings)


@pytest.fixture(scope="module")
def small() -> Plan:
    return planned()


def test_memory_is_that_of_the_compiler_and_its_parts_add_up(small: Plan) -> None:
    assert small.hbm_bytes_per_device == (
        small.argument_bytes + small.temp_bytes + small.output_bytes - small.alias_bytes
    )
    parts = dataclasses.asdict(small.memory)
    assert sum(parts.values()) == small.hbm_bytes_per_device
    # 16 rows of 64 × 128 floats over 8 devices, for each of 4 layers.
    assert parts["activations"] == 4 * 16 * 64 * 128 * 4 // 8
    assert 2 * parts["weights"] <= parts["optimizer"] < 2.1 * parts["weights"]
    assert small.argument_bytes >= parts["weights"] + parts["optimizer"]


def test_weights_are_split_over_the_devices(small: Plan) -> None:
    assert small.devices == 8 and small.mesh == {"fsdp": 8}
    matrices = 2 * 512 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 256)
    norms = (2 * 4 + 1) * 128
    assert small.memory.weights == 4 * (matrices // 8 + norms)  # norms are whole everywhere


def test_the_step_takes_as_long_as_its_longest_term(small: Plan) -> None:
    assert small.estimated_step_seconds == max(small.seconds.values())
    assert small.seconds[small.bound_by] == small.estimated_step_seconds
    assert small.seconds["matmul"] == small.flops_per_device / CHIP.flops
    assert small.seconds["hbm"] == small.hbm_traffic_bytes_per_device / CHIP.bandwidth
    received = sum(small.collective_bytes.values())
    assert small.seconds["interconnect"] == received / CHIP.interconnect
    assert small.model_flops_utilisation == pytest.approx(
        1e9 / (small.estimated_step_seconds * CHIP.flops)
    )
    assert small.tokens_per_second == pytest.approx(16 * 64 / small.estimated_step_seconds)


def test_fsdp_moves_the_weights_at_least_three_times(small: Plan) -> None:
    """Gathered for the forward pass and again to recompute, and the gradients reduced."""
    least = 3 * 7 * small.memory.weights
    assert least < sum(small.collective_bytes.values()) < 3 * least


def test_json_has_the_fields_that_readers_expect(small: Plan, tmp_path: Any) -> None:
    write(tmp_path / "plan.json", small.to_json())
    read = json.loads((tmp_path / "plan.json").read_text())
    assert set(read) >= FIELDS
    assert set(read["memory"]) == {"weights", "optimizer", "activations", "temporaries"}
    assert read["fits"] is True and read["settings"] == {"model": "small"}
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]


def test_the_text_says_what_counts(small: Plan) -> None:
    text = str(small)
    assert "8 × cpu, fsdp 8; model small" in text
    assert f"({small.hbm_bytes_per_device:,} bytes): fits" in text
    assert f"bound by {small.bound_by}" in text
    assert f"{small.model_flops_utilisation:.1%} of the peak (MFU)" in text
    assert "what to change" not in text


def test_what_is_larger_than_the_chip_does_not_fit() -> None:
    tiny = dataclasses.replace(TOPOLOGY, chip=dataclasses.replace(CHIP, hbm=2**16))
    result = planned(tiny)
    assert not result.fits and "DOES NOT FIT" in str(result)


@pytest.mark.slow
def test_traffic_is_the_compilers_where_nothing_loops_and_the_same_where_it_does() -> None:
    """XLA's count is right for unrolled layers: two of them less one, against scanned ones."""

    def unrolled(layers: int) -> tuple[float, int]:
        compiled = step_of(layers, 1, scan_layers=False)
        compiled = compiled[0].lower(*compiled[1:]).compile()
        own = tally(hlo.parse(compiled.as_text())).traffic
        return compiled.cost_analysis()["bytes accessed"], own

    def scanned(layers: int) -> int:
        step, state, batch = step_of(layers, 1)
        return tally(hlo.parse(step.lower(state, batch).compile().as_text())).traffic

    (theirs2, own2), (theirs1, own1) = unrolled(3), unrolled(2)
    layer = theirs2 - theirs1
    assert own2 - own1 == pytest.approx(layer, rel=0.01)
    assert scanned(6) - scanned(5) == pytest.approx(layer, rel=0.15)


def test_any_function_can_be_planned() -> None:
    """Not only training: here a product on one device."""
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    w = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharding)
    result = plan_traced(
        lambda: jax.jit(lambda x, w: x @ w).trace(w, w),
        topology=dataclasses.replace(TOPOLOGY, text="cpu:1", count=1),
        mesh=mesh,
        weights=w,
        tokens=64,
        model_flops=2 * 64**3,
    )
    assert result.flops_per_device == 2 * 64**3
    assert result.memory.weights == 64 * 64 * 4
    assert result.memory.optimizer == result.memory.activations == 0
    assert result.collective_bytes == {}


@pytest.mark.parametrize(
    ("flops", "traffic", "moved", "bound_by"),
    [(1e12, 0, 0, "matmul"), (1e9, 1e11, 0, "hbm"), (1e9, 1e9, 1e10, "interconnect")],
)
def test_roofline(flops: float, traffic: float, moved: float, bound_by: str) -> None:
    found = estimate(CHIP, flops, traffic, {"all-gather": moved}, 5e11)
    assert (found.bound_by, found.seconds, found.utilisation) == (bound_by, 1.0, 0.5)


def test_int8_products_have_a_peak_of_their_own() -> None:
    chip = dataclasses.replace(CHIP, int8_ops=2e12)
    found = estimate(chip, 1e12, 0, {}, 5e11, int8_flops=6e11)
    assert found.terms["matmul"] == pytest.approx(0.4 + 0.3)
