"""Tensors that files of another layout hold as parts of larger ones."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fmjax.convert import TRANSPOSE, Fused, Item, Row, load_params, save_params, write_weights
from fmjax.core.errors import CheckpointError
from fmjax.core.params import ParamSpec
from fmjax.core.tree import unflatten

L, E, D, F = 2, 4, 6, 8
BOTH = "model.layers.{layer}.experts.both"
ROWS = [
    Row(
        f"model.layers.{{layer}}.experts.{{expert}}.{name}",
        f"layers/{name}",
        TRANSPOSE,
        fused=Fused(BOTH, part, 2),
    )
    for part, name in enumerate(("a", "b"))
] + [Row("model.layers.{layer}.gate", "layers/gate", fused=Fused("model.layers.{layer}.router"))]
SHAPES = {"layers/a": (L, E, D, F), "layers/b": (L, E, D, F), "layers/gate": (L, D)}
ABSTRACT = unflatten({p: ParamSpec(s, np.float32, (None,) * len(s)) for p, s in SHAPES.items()})


def tensors(prefix="model."):
    rng = np.random.default_rng(0)
    found = {}
    for i in range(L):
        found[f"{prefix}layers.{i}.experts.both"] = rng.normal(size=(E, 2 * F, D)).astype("f4")
        found[f"{prefix}layers.{i}.router"] = rng.normal(size=D).astype("f4")
    return found


def write(directory, tensors):
    items = [Item(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]
    write_weights(directory, items, 10**9)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_parts_are_read_where_they_lie_and_written_apart(tmp_path, prefix):
    whole = tensors(prefix)
    write(tmp_path, whole)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"a": P(None, "y", "x"), "b": P("x", None, None, "y"), "gate": P()}
    sharding = {"layers": {name: NamedSharding(mesh, spec) for name, spec in specs.items()}}
    params = load_params(tmp_path, ROWS, ABSTRACT, sharding)["layers"]
    for layer in range(L):
        both = whole[f"{prefix}layers.{layer}.experts.both"].swapaxes(1, 2)
        np.testing.assert_array_equal(params["a"][layer], both[..., :F])
        np.testing.assert_array_equal(params["b"][layer], both[..., F:])
        np.testing.assert_array_equal(
            params["gate"][layer], whole[f"{prefix}layers.{layer}.router"]
        )
    save_params(tmp_path / "apart", ROWS, {"layers": params})
    again = load_params(tmp_path / "apart", ROWS, ABSTRACT)["layers"]
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.1.experts.both": np.zeros((E, 15, D), "f4")}, "not 2 equal parts"),
        ({"model.layers.1.experts.both": np.zeros(3, "f4")}, "not 2 equal parts"),
        ({"model.layers.1.experts.both": np.zeros((E, 4, D), "f4")}, r"\[2, 6\], .* \[8, 6\]"),
        (
            {"model.layers.1.experts.both": np.zeros((3, 16, D), "f4")},
            "lacks .*1.experts.3.a",
        ),
        ({"model.layers.1.experts.both": np.zeros((5, 16, D), "f4")}, "no parameter for"),
        ({"model.layers.1.experts.0.a": np.zeros((F, D), "f4")}, "0.a' and .*both', one parameter"),
        ({"layers.1.gate": np.zeros(D, "f4")}, "both 'model.layers.1.gate' and 'layers.1.gate'"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, changes, message):
    write(tmp_path, tensors() | changes)
    with pytest.raises(CheckpointError, match=message):
        load_params(tmp_path, ROWS, ABSTRACT)
