import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fmjax.convert.safetensors import DTYPES, Item, Tensor, cast, read_header, write_file
from fmjax.core.errors import CheckpointError


def item(name, array):
    return Item(name, array.shape, array.dtype, lambda: array)


def raw(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def bits(array):
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_round_trips_bit_for_bit(tmp_path, code):
    noise = np.random.default_rng(0).integers(0, 2, 64, np.uint8)
    if code != "BOOL":
        noise = np.random.default_rng(0).integers(0, 256, 64, np.uint8)  # NaN payloads included
    array = noise.view(DTYPES[code]).reshape(2, -1)
    write_file(tmp_path / "a.safetensors", [item("x", array)])
    tensor = read_header(tmp_path / "a.safetensors")["x"]
    assert (tensor.dtype, tensor.shape) == (array.dtype, array.shape)
    assert bits(tensor.view()) == bits(array)
    assert bits(tensor.view().T[1:]) == bits(array.T[1:])


def test_files_are_what_the_reference_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.normal(size=(3, 5)).astype(np.float32),
        "a": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "count": np.arange(3),
        "mask": np.array([True, False, True]),
    }
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_file(ours, [item(k, v) for k, v in arrays.items()])
    safetensors.numpy.save_file(arrays, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()
    for name, tensor in read_header(theirs).items():
        assert bits(tensor.view()) == bits(arrays[name]), name


def test_non_contiguous_arrays_and_other_dtypes_are_written_as_declared(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    declared = Item("x", (3, 2), DTYPES["BF16"], lambda: array)
    write_file(tmp_path / "a", [declared])
    with safetensors.safe_open(tmp_path / "a", "np") as f:
        np.testing.assert_array_equal(f.get_tensor("x").astype(np.float32), array)
        assert f.metadata() == {"format": "pt"}


def test_an_array_of_another_shape_than_declared_raises(tmp_path):
    wrong = Item("x", (2,), np.dtype(np.float32), lambda: np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match=r"'x' has shape \(3,\) instead of \(2,\)"):
        write_file(tmp_path / "a", [wrong])
    with pytest.raises(CheckpointError, match="no dtype for 'x'"):
        write_file(tmp_path / "a", [item("x", np.zeros(2, np.complex64))])


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


HALVES = {
    "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
}
APART = {**entry(), "y": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{not json", b"", "not valid JSON"),
        (b"\xff\xfe\xfa", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"x":1,"x":2}', b"", "stands there twice"),
        ({"x": 3}, b"", "lacks dtype, shape or data_offsets"),
        ({"x": {"dtype": "F32"}}, b"", "lacks dtype, shape or data_offsets"),
        (entry(dtype="F4"), b"\0" * 8, "dtype 'F4'; convert the file"),
        (entry(shape=[-2]), b"\0" * 8, r"has shape \[-2\]"),
        (entry(shape=[2.0]), b"\0" * 8, r"has shape \[2.0\]"),
        (entry(shape=[2**62]), b"\0" * 8, "lies in a range of 8"),
        (entry(data_offsets=[-8, 0]), b"\0" * 8, "lies in a range of 8"),
        (entry(data_offsets=[0, 4]), b"\0" * 8, "lies in a range of 4"),
        (entry(data_offsets=[8, 16]), b"\0" * 16, "leaves a gap"),
        (HALVES, b"\0" * 12, "'y' overlaps another"),
        (APART, b"\0" * 16, "'y' leaves a gap"),
        (entry(), b"\0" * 7, "the tensors end at byte"),
        (entry(), b"\0" * 9, "the tensors end at byte"),
    ],
)
def test_malformed_files_raise_one_line_that_names_the_file(tmp_path, header, data, message):
    file = raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as e:
        read_header(file)
    assert "bad.safetensors" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"\x05\0\0", b"version https://git-lfs.github.com/spec"])
def test_files_too_short_for_their_header_raise(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_header(tmp_path / "a")


def test_every_truncation_raises(tmp_path):
    write_file(tmp_path / "a", [item("x", np.arange(3.0)), item("y", np.zeros((2, 0)))])
    whole = (tmp_path / "a").read_bytes()
    for n in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:n])
        with pytest.raises(CheckpointError):
            read_header(tmp_path / "a")


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "none.safetensors")


def test_casts_refuse_what_they_cannot_hold():
    big = np.array([1e5], np.float32)
    with pytest.raises(CheckpointError, match="'x' has values that float16 cannot hold"):
        cast(big, np.float16, "x")
    assert cast(big, ml_dtypes.bfloat16, "x").dtype == ml_dtypes.bfloat16
    assert np.isinf(cast(np.array([np.inf], np.float32), np.float16, "x")[0])
    with pytest.raises(CheckpointError, match="'x' holds int8 where float32 is wanted"):
        cast(np.zeros(2, np.int8), np.float32, "x")


def test_unaligned_tensors_read_right(tmp_path):
    data = b"\1" + np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16).tobytes()
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "x": {"dtype": "BF16", "shape": [4], "data_offsets": [1, 9]},
    }
    tensor: Tensor = read_header(raw(tmp_path / "a", header, data))["x"]
    np.testing.assert_array_equal(cast(tensor.view(), np.float32, "x"), np.arange(4))
