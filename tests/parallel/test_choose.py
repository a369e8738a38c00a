"""Which layouts are chosen for which models and devices."""

import dataclasses

import jax
import numpy as np
import pytest

from fmjax.parallel import RULES, make_mesh, unused_axes
from fmjax.parallel.choose import Needs, choose, device_memory, state_bytes

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Fake:
    slice_index: int = 0
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"


def devices(count: int, slices: int = 1) -> list[Fake]:
    return [Fake(i * slices // count) for i in range(count)]


LLAMA = {"width": 4096, "heads": 32, "inner": 11008}
SMALL = Needs(state_bytes(125_000_000), rows=64, width=768, heads=12, inner=3072)
SEVEN = Needs(state_bytes(7_000_000_000), rows=512, **LLAMA)
MIXTRAL = Needs(state_bytes(47_000_000_000), rows=512, **LLAMA, experts=8)
LORA = Needs(state_bytes(40_000_000, 7_000_000_000), rows=64, **LLAMA)
QLORA = Needs(state_bytes(40_000_000, 7_000_000_000, 4.5), rows=64, **LLAMA)


@pytest.mark.parametrize(
    ("needs", "count", "slices", "gb", "sizes", "rules"),
    [
        (SEVEN, 1, 1, 16, {"data": 1}, "ddp"),
        (SMALL, 8, 1, 16, {"data": 8}, "ddp"),
        (SEVEN, 16, 1, 95, {"fsdp": 16}, "fsdp"),
        (SEVEN, 64, 4, 95, {"data": 4, "fsdp": 16}, "fsdp"),
        # LoRA's frozen 14 GB fit on a v5p and not on a v5e, QLoRA's 4 GB on both.
        (LORA, 8, 1, 95, {"data": 8}, "ddp"),
        (LORA, 8, 1, 16, {"fsdp": 8}, "fsdp"),
        (QLORA, 8, 1, 16, {"data": 8}, "ddp"),
        # Fewer rows than devices, and more devices than one axis takes.
        (dataclasses.replace(SEVEN, rows=16), 64, 1, 32, {"fsdp": 16, "tensor": 4}, "fsdp_tensor"),
        (SEVEN, 512, 1, 95, {"fsdp": 256, "tensor": 2}, "fsdp_tensor"),
        (MIXTRAL, 8, 1, 95, {"expert": 8}, "expert"),
        (MIXTRAL, 64, 1, 95, {"fsdp": 8, "expert": 8}, "expert"),
        # More experts than one axis takes, and too few rows for a tensor axis.
        (dataclasses.replace(MIXTRAL, experts=512, rows=1), 512, 1, 1, {"expert": 512}, "expert"),
        # A width of 768 divides over 256 devices and no more, of 300 over 4 of 16.
        (dataclasses.replace(SEVEN, width=300), 16, 1, 95, {"data": 4, "fsdp": 4}, "fsdp"),
    ],
)
def test_layouts(needs, count, slices, gb, sizes, rules) -> None:
    found = choose(needs, devices(count, slices), gb * GB)
    assert {axis: n for axis, n in found.sizes.items() if n > 1} == {
        axis: n for axis, n in sizes.items() if n > 1
    }
    assert found.rules == rules
    mesh = make_mesh(**found.sizes, devices=devices(count, slices))
    assert not unused_axes(mesh, RULES[rules])
    assert mesh.size == count


def test_the_line_says_what_and_why() -> None:
    assert str(choose(SEVEN, devices(32, 2), 95 * GB)) == (
        "layout: data 2 × fsdp 16, rules fsdp "
        "(112.0 GB do not fit on one device, 7.0 GB on each, 2 slices on data)"
    )
    assert "7.0 GB on each are much for 8.0 GB" in str(choose(SEVEN, devices(16), 8 * GB))
    assert str(choose(SMALL, devices(8), 16 * GB)) == (
        "layout: data 8, rules ddp (2.0 GB fit on each device)"
    )


def test_virtual_devices_share_the_memory_of_the_machine() -> None:
    one, eight = device_memory(jax.devices()[:1]), device_memory(jax.devices())
    assert one == 8 * eight > 1e9
    assert device_memory(devices(1)) is None


@dataclasses.dataclass(frozen=True)
class Sized(Fake):
    size: int = 0

    def memory_stats(self) -> dict[str, int]:
        if self.process_index != jax.process_index():
            raise RuntimeError("only of addressable devices")
        return {"bytes_limit": self.size}


@pytest.mark.parametrize("process", [0, 1])
def test_all_processes_go_by_the_smallest_device(process, monkeypatch) -> None:
    """Each can ask its own devices only; were they to differ, they would choose other layouts."""
    sizes = [95 * 2**30, 16 * 2**30]
    asked = []

    def gather(size: np.float32) -> np.ndarray:
        asked.append(size)
        return np.float32(sizes)

    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    found = device_memory([Sized(process_index=i, size=size) for i, size in enumerate(sizes)])
    assert found == 16 * 2**30 and asked == [sizes[process]]
