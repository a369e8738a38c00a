"""Real steps compiled for TPUs that are not there; needs libtpu, whose tests take turns."""

import dataclasses
import json
from pathlib import Path

import pytest

import fmjax
from fmjax.cli.main import main
from fmjax.plan import Plan, describe, parse
from fmjax.recipes.options import Adaptation
from fmjax.recipes.plan import plan_case
from fmjax.recipes.plan_apart import plan_apart
from fmjax.recipes.plan_cases import Case

pytestmark = [pytest.mark.usefixtures("libtpu"), pytest.mark.optimised, pytest.mark.slow]

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 1024,
}
OVERRIDE = tuple(f"{name}={n}" for name, n in SIZES.items())
CASE = Case("llama-7b", "v5e:4", 8, 256, attention="xla", mesh="fsdp=4", override=OVERRIDE)
MATRICES = 2 * 1024 * 256 + 2 * (4 * 256 * 256 + 3 * 256 * 512)


@pytest.fixture(scope="module")
def whole(libtpu: None) -> Plan:
    """Of `CASE`, its machine code included."""
    return plan_case(CASE)


@pytest.mark.parametrize("text", ["v4:1", "v4:2x2x1", "v5e:1", "v5e:2x4", "v5p:1", "v6e:4"])
def test_devices_are_as_many_as_chips(text: str) -> None:
    topology = parse(text)
    devices = describe(topology)
    assert len(devices) == topology.count
    assert {d.platform for d in devices} == {"tpu"}


def test_the_command_prints_a_plan_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: Plan
) -> None:
    """Without machine code: the figures are those of the whole program."""
    file = tmp_path / "plan.json"
    line = "plan --model llama-7b --topology v5e:4 --batch 8 --seq 256 --mesh fsdp=4 --json"
    assert main([*line.split(), str(file), "--override", *OVERRIDE]) == 0
    out = capsys.readouterr().out
    assert "4 × v5e, fsdp 4" in out and "fits" in out and "bound by" in out
    read = json.loads(file.read_text())
    total = read["argument_bytes"] + read["temp_bytes"] + read["output_bytes"]
    assert read["hbm_bytes_per_device"] == total - read["alias_bytes"]
    assert read["fits"] is True and read["hbm_limit_bytes"] == int(15.75 * 2**30)
    assert 4 * MATRICES // 4 < read["memory"]["weights"] < 4.2 * MATRICES // 4
    assert sum(read["memory"].values()) == read["hbm_bytes_per_device"]
    # Weights are gathered at bfloat16 for two passes, and gradients reduced.
    moved = sum(read["collective_bytes"].values())
    assert 3 * 2 * MATRICES * 3 // 4 < moved < 5 * 2 * 2 * MATRICES
    tokens = 8 * 256
    model = tokens * (6 * (MATRICES - 1024 * 256) + 6 * 2 * 256 * 256) / 4
    assert read["model_flops_per_device"] == pytest.approx(model, rel=0.01)
    assert read["flops_per_device"] > model
    same = json.loads(whole.to_json())
    # The program has up to 16 KiB for the runtime in its temporaries.
    assert 0 <= same["temp_bytes"] - read["temp_bytes"] <= 16 << 10
    for name in ("temp_bytes", "hbm_bytes_per_device", "memory", "compile_seconds", "settings"):
        del same[name]
    assert {name: read[name] for name in same} == same


def test_saved_activations_wait_in_the_hosts_memory(whole: Plan) -> None:
    offloaded = plan_apart(dataclasses.replace(CASE, remat="offload"))
    inputs = 2 * 2 * 256 * 256 * 2  # 2 layers × 2 rows of 256 tokens, bfloat16
    assert whole.host_bytes == 0
    assert inputs <= offloaded.host_bytes <= 2 * inputs


def test_optimizer_state_waits_in_the_hosts_memory(whole: Plan) -> None:
    offloaded = plan_apart(dataclasses.replace(CASE, offload="optimizer"))
    moments = 2 * 4 * MATRICES // 4
    assert offloaded.host_bytes >= moments
    assert offloaded.memory.optimizer < 1024 < moments < whole.memory.optimizer
    assert whole.argument_bytes - offloaded.argument_bytes >= moments
    assert offloaded.settings["offload"] == "optimizer"


def test_what_does_not_fit_is_told_what_to_change() -> None:
    large = dataclasses.replace(CASE, topology="v5e:1", mesh="", batch=512, seq=2048, remat="none")
    result = plan_case(large)
    assert not result.fits
    assert result.hbm_bytes_per_device > result.hbm_limit_bytes
    assert result.temp_bytes is None and result.estimated_step_seconds is None
    assert result.flops_per_device > 0
    said = " ".join(result.advice)
    assert "--remat full" in said and "--accumulate 2" in said and "--batch 256" in said
    assert "what to change" in str(result)


def test_frozen_weights_of_four_bits_take_a_quarter_of_bfloat16() -> None:
    found = {
        method: plan_case(
            dataclasses.replace(
                CASE, topology="v5e:1", mesh="", batch=2, adaptation=Adaptation(method=method)
            )
        ).memory
        for method in ("lora", "qlora")
    }
    tables, adapter = 2 * 2 * 1024 * 256, 2 * 8 * (4 * 512 + 3 * 768)
    layers = MATRICES - 2 * 1024 * 256
    # The adapter of qlora is bfloat16, with moments in float32 as all have.
    whole = {"lora": 2 * layers + 4 * adapter, "qlora": 4.127 / 8 * layers + 2 * adapter}
    for method, memory in found.items():
        assert memory.weights == pytest.approx(tables + whole[method], rel=0.02)
        assert memory.optimizer == pytest.approx(2 * 4 * adapter, rel=0.02)


def test_without_a_mesh_the_layout_is_what_a_run_would_choose() -> None:
    """Little is whole on every chip; what does not fit there is split."""
    small = plan_case(dataclasses.replace(CASE, mesh=""))
    assert small.mesh == {"data": 4} and small.settings["rules"] == "ddp"
    assert small.memory.weights == pytest.approx(4 * MATRICES, rel=0.02)


def test_a_token_of_decoding_reads_weights_and_cache_once() -> None:
    case = dataclasses.replace(CASE, batch=8, decode=True, mesh="data=2,tensor=2")
    result = plan_case(case)
    cache = 2 * 2 * 2 * 8 * 2 * 256 * 128  # bfloat16 keys and values of 2 layers
    assert result.memory.activations == cache // 4
    assert result.memory.optimizer == 0 and result.bound_by == "hbm"
    read = result.memory.weights + result.memory.activations
    # All but the table of embeddings, of which it reads 8 rows.
    assert read - 2 * 1024 * 256 // 2 < result.hbm_traffic_bytes_per_device < 1.6 * read
    assert result.alias_bytes >= cache // 4  # the cache is updated in place
    assert result.settings["step"] == "decode" and "remat" not in result.settings


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": 6}, "a batch of 6 rows does not divide over fsdp=4"),
        ({"batch": 0}, "--batch 0 and --seq 256 must be at least 1"),
        ({"mesh": "fsdp=3"}, "mesh fsdp=3 does not divide the 4 devices"),
        ({"mesh": "pods=4"}, "no axis 'pods'"),
        ({"mesh": "fsdp=many"}, "write axis=number"),
        ({"rules": "none_such"}, "no list 'none_such'"),
        ({"remat": "some"}, "remat 'some' is unknown"),
        ({"matmul": "int8", "decode": True}, "are of training; leave out --decode"),
        ({"offload": "optimizer", "decode": True}, "are of training; leave out --decode"),
        ({"microbatches": 0}, "microbatches is 0; it must be at least 1"),
        ({"attention": "some"}, "attention 'some' is unknown"),
        ({"model": "no-such-model"}, "no such directory or config.json, nor a published size"),
        ({"model": "gpt2", "seq": 2048, "override": ()}, "more than the model's context of 1024"),
        ({"adaptation": Adaptation(quantize="nf4")}, "weights of few bits cannot be trained"),
    ],
)
def test_wrong_settings_are_one_line(changed: dict, said: str) -> None:
    with pytest.raises(fmjax.FmjaxError) as e:
        plan_case(dataclasses.replace(CASE, **changed))
    assert said in str(e.value) and "\n" not in str(e.value)
