import json

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fmjax.convert.load as load_module
from fmjax.convert import Tensor, load_params, match, open_directory
from fmjax.core.errors import CheckpointError
from fmjax.core.tree import flatten, map_with_path, nbytes


@pytest.mark.parametrize("max_shard_size", [10**9, 300, 1])
def test_stacked_and_unstacked_parameters(tmp_path, toy, max_shard_size):
    toy.write(tmp_path, toy.tensors(), max_shard_size)
    params = flatten(load_params(tmp_path, toy.rows, toy.abstract()))
    want = flatten(toy.params())
    assert list(params) == list(want)
    for path, array in want.items():
        np.testing.assert_array_equal(params[path], array, path)
    loose = flatten(load_params(tmp_path, toy.rows, toy.abstract(stacked=False)))
    np.testing.assert_array_equal(loose["layers_2/out/kernel"], want["layers/out/kernel"][2])
    np.testing.assert_array_equal(loose["layers_1/scale"], want["layers/scale"][1])
    assert len(loose) == 10


def test_the_dtype_is_the_abstract_trees_unless_given(tmp_path, toy):
    toy.write(tmp_path, toy.tensors())
    half = load_params(tmp_path, toy.rows, toy.abstract(ml_dtypes.bfloat16))
    assert {x.dtype.name for x in jax.tree.leaves(half)} == {"bfloat16"}
    other = load_params(tmp_path, toy.rows, toy.abstract(), dtype="bfloat16")
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def matched(directory, toy, path):
    found = match(open_directory(directory), toy.rows, flatten(toy.abstract()))
    return next(m for m in found if m.target.path == path)


MESH = ((2, 2, 2), ("x", "y", "z"))
SPECS = {
    "embed/embedding": P(("x", "y"), "z"),
    "layers/qkv/kernel": P(None, "x", None, "y"),
    "layers/out/kernel": P(None, "y", ("x", "z")),
    "layers/scale": P(),
}


def test_shards_equal_the_whole_and_no_byte_is_read_twice(tmp_path, toy, monkeypatch):
    toy.write(tmp_path, toy.tensors(), 300)
    mesh = jax.make_mesh(*MESH, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    abstract = toy.abstract()
    sharding = map_with_path(lambda p, _: NamedSharding(mesh, SPECS[p]), abstract)
    sizes = []
    original = load_module.read_slice

    def counting(*args):
        out = original(*args)
        sizes.append(out.nbytes)
        return out

    monkeypatch.setattr(load_module, "read_slice", counting)
    params = load_params(tmp_path, toy.rows, abstract, sharding)
    for path, x in flatten(params).items():
        assert x.sharding == NamedSharding(mesh, SPECS[path])
        np.testing.assert_array_equal(x, flatten(toy.params())[path], path)
    assert sum(sizes) == nbytes(params)
    local = max(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    assert max(sizes) == local


def test_a_device_reads_only_its_own_part(tmp_path, toy, monkeypatch):
    """With all but one device out of reach, as on one host of many, the rest stays on the disk."""
    toy.write(tmp_path, toy.tensors())
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, P("x"))
    touched = []
    original = load_module.cast

    def recording(array, *args):
        touched.append(array.size)
        return original(array, *args)

    monkeypatch.setattr(load_module, "cast", recording)
    found = matched(tmp_path, toy, "embed/embedding")
    index = sharding.addressable_devices_indices_map((8, 4))[jax.devices()[3]]
    part = load_module.read_slice(found, index, np.dtype(np.float32))
    np.testing.assert_array_equal(part, toy.tensors()["model.embed.weight"][3:4])
    assert touched == [4]


def test_only_the_layers_of_the_slice_are_opened(tmp_path, toy, monkeypatch):
    toy.write(tmp_path, toy.tensors())
    opened = []
    original = Tensor.view

    def recording(self):
        opened.append(self.name)
        return original(self)

    monkeypatch.setattr(Tensor, "view", recording)
    found = matched(tmp_path, toy, "layers/out/kernel")
    index = (slice(1, 2), slice(None), slice(2, 4))
    part = load_module.read_slice(found, index, np.dtype(np.float32))
    np.testing.assert_array_equal(part, toy.params()["layers"]["out"]["kernel"][index])
    assert opened == ["model.layers.1.out.weight"]


# --- what is refused ----------------------------------------------------------------------------


def refuse(directory, toy, message):
    with pytest.raises(CheckpointError, match=message) as e:
        load_params(directory, toy.rows, toy.abstract())
    assert "\n" not in str(e.value)


def test_directories_without_usable_weights_raise(tmp_path, toy):
    refuse(tmp_path / "none", toy, "none is not a directory")
    refuse(tmp_path, toy, "neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"]
)
def test_pickles_are_never_opened(tmp_path, toy, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refuse(tmp_path, toy, f"only pickle weights .{name}.*save_pretrained")


def test_pickles_beside_safetensors_are_left_alone(tmp_path, toy):
    toy.write(tmp_path, toy.tensors())
    (tmp_path / "pytorch_model.bin").write_bytes(b"junk")
    load_params(tmp_path, toy.rows, toy.abstract())


def edit_index(directory, change):
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


FIRST = "model-00001-of-00007.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"x": "gone.safetensors"}), "'gone.safetensors', which is missing"),
        (lambda m: m.update({"x": "../x.safetensors"}), "'../x.safetensors'; shards must be"),
        (lambda m: m.update({"x": "/etc/x.safetensors"}), "shards must be .safetensors files in"),
        (lambda m: m.update({"x": "..\\x.safetensors"}), "shards must be .safetensors files in"),
        (lambda m: m.update({"x": "pytorch_model.bin"}), "shards must be .safetensors files in"),
        (lambda m: m.update({"x": ".."}), "shards must be .safetensors files in"),
        (lambda m: m.update({"x": FIRST}), f"places tensor 'x' in '{FIRST}', which does not hold"),
        (lambda m: m.pop("model.layers.0.scale"), "holds tensor 'model.layers.0.scale', which"),
        (lambda m: m.update({"x": 3}), "has no weight_map of names to files"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_raises(tmp_path, toy, change, message):
    toy.write(tmp_path, toy.tensors(), 300)
    edit_index(tmp_path, change)
    refuse(tmp_path, toy, message)


def test_an_index_that_is_not_json_raises(tmp_path, toy):
    (tmp_path / "model.safetensors.index.json").write_text("{")
    refuse(tmp_path, toy, "index.json is not valid JSON")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    refuse(tmp_path, toy, "has no weight_map")


def test_a_tensor_in_two_shards_raises(tmp_path, toy):
    toy.write(tmp_path, toy.tensors(), 300)
    shards = sorted(tmp_path.glob("*.safetensors"))
    (tmp_path / "model-stale.safetensors").write_bytes(shards[0].read_bytes())
    edit_index(tmp_path, lambda m: m.update({"stale": "model-stale.safetensors"}))
    refuse(tmp_path, toy, "in both 'model-00001-of-0000. ?.*'model-stale.safetensors'")


def test_a_truncated_shard_raises(tmp_path, toy):
    toy.write(tmp_path, toy.tensors(), 300)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refuse(tmp_path, toy, f"{shard.name} is damaged or incomplete")


def test_missing_unexpected_and_misshapen_tensors_raise(tmp_path, toy):
    tensors = toy.tensors()
    lost = tensors.pop("model.layers.1.out.weight")
    refuse(
        toy.write(tmp_path, tensors),
        toy,
        "lacks tensor 'model.layers.1.out.weight' .parameter 'layers/out/kernel'.",
    )
    tensors["model.layers.1.out.weight"] = lost.T
    refuse(toy.write(tmp_path, tensors), toy, r"has shape \[4, 8\], config.json asks for \[8, 4\]")
    tensors["model.layers.1.out.weight"] = lost
    for name in ("model.layers.3.scale", "model.layers.0.out.bias", "score.weight"):
        extra = tensors | {name: np.zeros(2)}
        refuse(toy.write(tmp_path, extra), toy, f"holds '{name}', which this configuration has no")


def test_integer_weights_raise(tmp_path, toy):
    tensors = toy.tensors() | {"model.embed.weight": np.zeros((8, 4), np.int8)}
    refuse(toy.write(tmp_path, tensors), toy, "holds int8 where float32 is wanted; a quantised")


def test_known_buffers_are_ignored(tmp_path, toy):
    names = ["rotary_emb.inv_freq", "attn.masked_bias", "attn.bias", "position_ids"]
    buffers = {f"model.layers.0.{name}": np.zeros(2) for name in names}
    toy.write(tmp_path, toy.tensors() | buffers)
    load_params(tmp_path, toy.rows, toy.abstract())


def test_names_without_the_base_models_prefix_are_accepted(tmp_path, toy):
    toy.write(tmp_path, {k.removeprefix("model."): v for k, v in toy.tensors().items()})
    params = flatten(load_params(tmp_path, toy.rows, toy.abstract()))
    np.testing.assert_array_equal(params["layers/scale"], toy.params()["layers"]["scale"])


def test_one_parameter_under_two_names_raises(tmp_path, toy):
    twice = toy.tensors() | {"embed.weight": toy.tensors()["model.embed.weight"]}
    message = "holds both 'model.embed.weight' and 'embed.weight', one parameter twice"
    refuse(toy.write(tmp_path, twice), toy, message)


def test_a_tied_copy_must_repeat_its_original(tmp_path, toy):
    embed = toy.tensors()["model.embed.weight"]
    toy.write(tmp_path, toy.tensors() | {"lm_head.weight": embed})
    load_params(tmp_path, toy.rows, toy.abstract())
    toy.write(tmp_path, toy.tensors() | {"lm_head.weight": np.nextafter(embed, 9)})
    refuse(tmp_path, toy, "'lm_head.weight' differs from 'model.embed.weight'.*tie_word_embeddings")
