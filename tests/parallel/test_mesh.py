"""Meshes over several slices, with devices that only say where they are."""

import dataclasses

import numpy as np
import pytest

from fmjax.core.errors import ShardingError
from fmjax.parallel import make_mesh
from fmjax.parallel.mesh import AXES, slice_count


@dataclasses.dataclass(frozen=True)
class Fake:
    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "fake"
    client: None = None


def fakes(count: int, slices: int, processes: int = 1) -> list[Fake]:
    return [Fake(i, i * slices // count, i * processes // count) for i in range(count)]


def where(mesh, key: str, **sizes: int) -> np.ndarray:
    """The devices' slices or processes, in the order of the axes named."""
    kept = tuple(sizes)
    assert tuple(a for a in AXES if mesh.shape[a] > 1) == kept
    values = np.vectorize(lambda d: getattr(d, key))(mesh.devices)
    return values.reshape(tuple(sizes.values()))


def test_slices_lie_on_the_outer_part_of_the_axis_that_crosses_them() -> None:
    mesh = make_mesh(data=4, fsdp=4, devices=fakes(16, 2), dcn={"data": 2})
    found = where(mesh, "slice_index", data=4, fsdp=4)
    assert (found == np.array([0, 0, 1, 1])[:, None]).all()
    mesh = make_mesh(data=2, fsdp=8, devices=fakes(16, 4), dcn={"data": 2, "fsdp": 2})
    found = where(mesh, "slice_index", data=2, fsdp=8)
    assert found.tolist() == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4]


def test_slices_go_on_data_or_else_on_fsdp() -> None:
    found = where(make_mesh(fsdp=4, devices=fakes(8, 2)), "slice_index", data=2, fsdp=4)
    assert (found == np.array([0, 1])[:, None]).all()
    found = where(make_mesh(data=1, fsdp=8, devices=fakes(8, 2)), "slice_index", fsdp=8)
    assert found.tolist() == [0] * 4 + [1] * 4


def test_processes_stand_in_where_devices_know_no_slices() -> None:
    devices = fakes(8, 1, processes=2)
    mesh = make_mesh(data=2, tensor=4, devices=devices, dcn={"data": 2})
    found = where(mesh, "process_index", data=2, tensor=4)
    assert (found == np.array([0, 1])[:, None]).all()


@pytest.mark.parametrize(
    ("sizes", "slices", "dcn", "message"),
    [
        ({"data": 1, "tensor": 8}, 2, None, "2 slices, and neither data=1 nor fsdp=1 .*dcn="),
        ({"data": 8}, 2, {"data": 4}, "makes 4 parts, but the devices are 2 slices; .* is 2"),
        ({"data": 8}, 2, {"rows": 2}, "no axis 'rows'; there are stage, data, fsdp"),
        ({"data": 2, "fsdp": 4}, 4, {"data": 4}, "data=2 does not divide by 4"),
        ({"data": 8}, 1, {"data": 2}, "makes 2 parts, but the devices are 1 processes"),
    ],
)
def test_what_does_not_fit_the_slices_is_refused(sizes, slices, dcn, message) -> None:
    with pytest.raises(ShardingError, match=message):
        make_mesh(**sizes, devices=fakes(8, slices), dcn=dcn)


def test_one_axis_takes_what_the_others_leave() -> None:
    assert make_mesh(fsdp=4, devices=fakes(8, 1)).shape["data"] == 2
    assert make_mesh(fsdp=-1, devices=fakes(8, 1)).shape["fsdp"] == 8
    assert make_mesh(tensor=2, fsdp=-1, devices=fakes(8, 1)).shape["fsdp"] == 4
    with pytest.raises(ShardingError, match="one of them may be −1"):
        make_mesh(data=-1, fsdp=-1, devices=fakes(8, 1))


def test_slices_are_counted() -> None:
    assert slice_count(fakes(8, 4)) == 4
    assert slice_count([object()]) == 1
