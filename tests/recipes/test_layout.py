"""Meshes and rules as settings name them, or as they are chosen."""

from types import SimpleNamespace

import jax
import pytest

import fmjax
from fmjax.core.errors import ConfigError, ShardingError
from fmjax.parallel import DEFAULT_RULES, RULES
from fmjax.recipes import layout
from fmjax.recipes.layout import lay_out, needs_of
from fmjax.recipes.models import architecture
from fmjax.recipes.options import Adaptation, Hardware

FULL, LORA = Adaptation(), Adaptation(method="lora")
TINY = fmjax.build(
    {
        "model_type": "mixtral", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": 4,
    }
).config  # fmt: skip


def test_what_is_named_is_taken(capsys) -> None:
    found = lay_out(Hardware(mesh="fsdp=4"), TINY, FULL, 8)
    assert dict(found.mesh.shape) | {"data": 2, "fsdp": 4} == dict(found.mesh.shape)
    assert found.rules == DEFAULT_RULES
    found = lay_out(Hardware(mesh="data=8", rules="ddp,norm=data"), TINY, FULL, 8)
    assert found.rules == (("norm", ("data",)), *RULES["ddp"])
    assert not capsys.readouterr().out


def test_without_a_mesh_the_layout_follows_from_the_sizes(capsys, monkeypatch) -> None:
    found = lay_out(Hardware(), TINY, FULL, 8)
    assert found.mesh.shape["data"] == 8
    assert found.rules == RULES["ddp"]
    assert capsys.readouterr().out == "layout: data 8, rules ddp (0.0 GB fit on each device)\n"
    choose = layout.choose
    monkeypatch.setattr(layout, "choose", lambda needs, devices: choose(needs, devices, 1e5))
    found = lay_out(Hardware(), TINY, FULL, 8)
    assert found.rules == RULES["expert"]
    assert found.mesh.shape["expert"] == 4
    assert found.mesh.shape["fsdp"] == 2
    assert "layout: fsdp 2 × expert 4, rules expert (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hardware", "rows", "message"),
    [
        ({"mesh": "tensor=2,data=4", "rules": "fsdp"}, 8, "--rules fsdp leave tensor of --mesh"),
        ({"rules": "fsdp"}, 8, "--rules fsdp need a mesh .*--mesh fsdp=-1"),
        ({"mesh": "fsdp=8", "rules": "fdsp"}, 8, "no list 'fdsp'; there are ddp, zero1"),
        ({"mesh": "fsdp=8", "rules": "fsdp,mpl=tensor"}, 8, "no logical axis 'mpl'"),
        ({"mesh": "fsdp=8", "rules": "fsdp,mlp=tensr"}, 8, "no mesh axis 'tensr'"),
        ({"mesh": "fsdp=8", "rules": "fsdp,mlp"}, 8, "write a list and pairs"),
        ({}, 6, "--batch-size: a batch of 6 rows does not divide over data=8"),
    ],
)
def test_what_does_not_fit_is_refused(hardware, rows, message) -> None:
    with pytest.raises(ShardingError, match=message):
        lay_out(Hardware(**hardware), TINY, FULL, rows)


def test_needs_are_read_off_the_abstract_parameters() -> None:
    found = needs_of(Hardware(), TINY, FULL, 8)
    assert (found.rows, found.width, found.heads, found.inner, found.experts) == (8, 48, 4, 32, 4)
    seven = architecture("llama-7b")
    full = needs_of(Hardware(), seven, FULL, 8)
    assert full.state_bytes == pytest.approx(16 * 6.74e9, rel=0.01)
    assert (full.width, full.heads, full.inner, full.experts) == (4096, 32, 11008, 0)
    lora = needs_of(Hardware(dtype="bfloat16"), seven, LORA, 8)
    assert 2 * 6.74e9 < lora.state_bytes < 2.5 * 6.74e9
    qlora = needs_of(Hardware(), seven, Adaptation(method="qlora"), 8)
    assert qlora.state_bytes < 0.95 * 6.74e9


def test_one_device_asks_for_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    found = lay_out(Hardware(), TINY, FULL, 8)
    assert found.rules == DEFAULT_RULES
    assert not capsys.readouterr().out


def test_what_waits_in_the_hosts_memory_does_not_count_on_the_devices(monkeypatch) -> None:
    plain, offloaded = (
        needs_of(Hardware(dtype="bfloat16", offload=kind), TINY, FULL, 8).state_bytes
        for kind in ("none", "optimizer")
    )
    assert offloaded == plain / 2  # weights and gradients, of as many moments
    device = SimpleNamespace(addressable_memories=lambda: [SimpleNamespace(kind="device")])
    monkeypatch.setattr(layout.offload.jax, "local_devices", lambda: [device])
    with pytest.raises(ConfigError, match="needs pinned_host memory, but .* leave offload .--off"):
        lay_out(Hardware(offload="optimizer"), TINY, FULL, 8)
