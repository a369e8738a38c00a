import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fmjax.convert import Row, load_params, open_directory, save_params
from fmjax.core.errors import CheckpointError
from fmjax.core.tree import map_with_path

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def same(directory, tensors):
    """The files hold exactly these tensors, bit for bit, in their dtypes."""
    found = open_directory(directory)
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape), name
        assert tensor.view().tobytes() == tensors[name].tobytes(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("max_shard_size", [10**9, 300, 1])
@pytest.mark.parametrize("stacked", [True, False])
def test_parameters_become_the_tensors_they_came_from(
    tmp_path, toy, dtype, max_shard_size, stacked
):
    save_params(tmp_path / "a", toy.rows, toy.params(dtype, stacked), max_shard_size)
    same(tmp_path / "a", toy.tensors(dtype))
    if dtype is not np.float64:  # which JAX does not hold unless told to
        params = load_params(tmp_path / "a", toy.rows, toy.abstract(dtype, stacked))
        save_params(tmp_path / "b", toy.rows, params, max_shard_size)
        same(tmp_path / "b", toy.tensors(dtype))


def test_one_file_that_the_reference_library_reads(tmp_path, toy):
    save_params(tmp_path, toy.rows, toy.params())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for name, array in toy.tensors().items():
        np.testing.assert_array_equal(loaded[name], array)


def test_shards_keep_to_the_limit_layer_by_layer(tmp_path, toy):
    save_params(tmp_path, toy.rows, toy.params(), max_shard_size=460)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(x.nbytes for x in toy.tensors().values())}
    layer = {
        index["weight_map"][f"model.layers.1.{n}"] for n in ("qkv.weight", "out.weight", "scale")
    }
    assert len(layer) == 1
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in range(1, 4)]
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == files
    for file in files:
        assert sum(x.nbytes for x in safetensors.numpy.load_file(tmp_path / file).values()) <= 460


def test_a_cast_on_the_way_out(tmp_path, toy):
    save_params(tmp_path, toy.rows, toy.params(), dtype="bfloat16")
    same(tmp_path, {k: v.astype(ml_dtypes.bfloat16) for k, v in toy.tensors().items()})


def test_sharded_parameters_on_eight_devices(tmp_path, toy):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"embed/embedding": P("x"), "layers/out/kernel": P(None, None, "x")}

    def put(path, x):
        return jax.device_put(x, NamedSharding(mesh, specs.get(path, P())))

    save_params(tmp_path, toy.rows, map_with_path(put, toy.params()))
    same(tmp_path, toy.tensors())


def test_parameters_that_do_not_fit_the_rows_raise(tmp_path, toy):
    params = toy.params() | {"extra": np.zeros(2)}
    with pytest.raises(CheckpointError, match="no row of the weights map names parameter 'extra'"):
        save_params(tmp_path / "a", toy.rows, params)
    with pytest.raises(CheckpointError, match="'gone', which the model does not have"):
        save_params(tmp_path / "a", [*toy.rows, Row("gone", "gone")], toy.params())
    with pytest.raises(CheckpointError, match="max_shard_size is 0"):
        save_params(tmp_path / "a", toy.rows, toy.params(), max_shard_size=0)
    assert not (tmp_path / "a").exists()
