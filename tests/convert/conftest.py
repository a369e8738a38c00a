"""A small model-shaped tree with every kind of row, and its tensors as the files hold them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fmjax.convert import TRANSPOSE, Item, Row, Split, write_weights
from fmjax.core.params import ParamSpec
from fmjax.core.tree import unflatten

sys.path.insert(0, str(Path(__file__).parent))  # so that tests import bitsandbytes_cases

LAYERS = 3
ROWS = [
    Row("model.embed.weight", "embed/embedding"),
    Row("model.layers.{layer}.qkv.weight", "layers/qkv/kernel", Split(1, (3, 4))),
    Row("model.layers.{layer}.out.weight", "layers/out/kernel", TRANSPOSE),
    Row("model.layers.{layer}.scale", "layers/scale"),
    Row("lm_head.weight", "embed/embedding", copy=True),
]
SHAPES = {
    "embed/embedding": ((8, 4), ("vocab", "embed")),
    "layers/qkv/kernel": ((LAYERS, 4, 3, 4), ("layers", "embed", None, "heads")),
    "layers/out/kernel": ((LAYERS, 4, 8), ("layers", "heads", "embed")),
    "layers/scale": ((LAYERS,), ("layers",)),
}


def tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"model.embed.weight": (8, 4)}
    for i in range(LAYERS):
        shapes[f"model.layers.{i}.qkv.weight"] = (4, 12)
        shapes[f"model.layers.{i}.out.weight"] = (8, 4)
        shapes[f"model.layers.{i}.scale"] = ()
    return {k: np.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


def write(directory, tensors, max_shard_size=10**9):
    directory.mkdir(exist_ok=True)
    items = [Item(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]
    write_weights(directory, items, max_shard_size)
    return directory


def abstract(dtype=np.float32, stacked=True):
    flat = {}
    for path, (shape, axes) in SHAPES.items():
        if stacked or axes[0] != "layers":
            flat[path] = ParamSpec(shape, np.dtype(dtype), axes)
        else:
            for i in range(LAYERS):
                name = path.replace("layers/", f"layers_{i}/")
                flat[name] = ParamSpec(shape[1:], np.dtype(dtype), axes[1:])
    return unflatten(flat)


def params(dtype=np.float32, stacked=True):
    t = tensors(dtype)
    layers = {
        "qkv/kernel": [t[f"model.layers.{i}.qkv.weight"].reshape(4, 3, 4) for i in range(LAYERS)],
        "out/kernel": [t[f"model.layers.{i}.out.weight"].T for i in range(LAYERS)],
        "scale": [t[f"model.layers.{i}.scale"] for i in range(LAYERS)],
    }
    flat = {"embed/embedding": t["model.embed.weight"]}
    for name, values in layers.items():
        if stacked:
            flat[f"layers/{name}"] = np.stack(values)
        else:
            flat |= {f"layers_{i}/{name}": values[i] for i in range(LAYERS)}
    return unflatten(flat)


@pytest.fixture
def toy():
    return SimpleNamespace(
        rows=ROWS, abstract=abstract, tensors=tensors, params=params, write=write
    )
