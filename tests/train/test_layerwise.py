"""Layer-wise learning rates, against torch's parameter groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.train import adamw, layerwise_decay

LAYERS, RATE = 3, 0.7


def scales(params, **kwargs):
    """What each leaf's update of ones becomes."""
    optimizer = layerwise_decay(RATE, LAYERS, **kwargs)
    ones = jax.tree.map(jnp.ones_like, params)
    scaled, _ = optimizer.update(ones, optimizer.init(params), params)
    return tree.flatten(scaled)


def test_three_steps_are_those_of_torch_with_parameter_groups():
    rng = np.random.RandomState(0)
    shapes = {
        "params/wte/embedding": (5, 4),
        "params/h/mlp/kernel": (LAYERS, 4, 4),
        "params/h/ln_1/scale": (LAYERS, 4),
        "params/ln_f/scale": (4,),
        "params/score/kernel": (4, 2),
        "adapter/h/attn/lora_a": (LAYERS, 4, 2),
    }
    start = {path: rng.randn(*shape).astype(np.float32) for path, shape in shapes.items()}
    grads = [{p: rng.randn(*s).astype(np.float32) for p, s in shapes.items()} for _ in range(3)]

    optimizer = optax.chain(adamw(1e-2, b2=0.99, weight_decay=0.1), layerwise_decay(RATE, LAYERS))
    params = tree.unflatten({path: jnp.asarray(x) for path, x in start.items()})
    state = optimizer.init(params)
    for flat in grads:
        updates, state = optimizer.update(tree.unflatten(flat), state, params)
        params = optax.apply_updates(params, updates)

    expected, groups, given = {}, [], []
    for path, x in start.items():
        stacked = "/h/" in path
        parts = [torch.nn.Parameter(torch.tensor(part)) for part in (x if stacked else [x])]
        for i, part in enumerate(parts):
            power = LAYERS - i if stacked else LAYERS + 1 if "wte" in path else 0
            decay = 0.0 if path.endswith("scale") else 0.1
            groups.append({"params": [part], "lr": 1e-2 * RATE**power, "weight_decay": decay})
            given.append((part, path, i if stacked else ...))
        expected[path] = parts
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    for flat in grads:
        for part, path, index in given:
            part.grad = torch.tensor(flat[path][index])
        reference.step()
    for path, x in tree.flatten(params).items():
        parts = np.stack([part.detach().numpy() for part in expected[path]])
        np.testing.assert_allclose(x, parts if "/h/" in path else parts[0], atol=1e-6, rtol=0)


def test_layers_that_are_not_scanned_and_names_of_the_callers():
    params = {
        "layers_0": {"mlp": {"kernel": jnp.ones((LAYERS, 2))}},
        "layers_2": {"mlp": {"kernel": jnp.ones(2)}},
        "table": {"weight": jnp.ones(2)},
    }
    flat = scales(params)
    assert float(flat["layers_0/mlp/kernel"][0, 0]) == pytest.approx(RATE**3)
    assert float(flat["layers_2/mlp/kernel"][0]) == pytest.approx(RATE)
    assert float(flat["table/weight"][0]) == 1.0
    below = {name: params["table"] for name in ("cls_token", "register_tokens", "x_embeddings")}
    below["patch_embeddings"] = {"projection": params["table"]}
    image = scales({"layers_0": params["layers_0"], **below})
    below = [float(x[0]) for path, x in image.items() if "layers" not in path]
    assert below == pytest.approx([RATE**4] * 4)
    own = scales({"table": params["table"], "block_1": params["layers_2"]}, stack="block",
                 below=["^table/"])  # fmt: skip
    assert float(own["table/weight"][0]) == pytest.approx(RATE**4)
    assert float(own["block_1/mlp/kernel"][0]) == pytest.approx(RATE**2)


def test_names_of_every_family(families):
    for name, model in families.items():
        number = model.config.num_hidden_layers
        specs = jax.tree.map(
            lambda x: jnp.ones((x.shape[0],) + (1,) * (len(x.shape) - 1), x.dtype),
            fmjax_abstract(model),
            is_leaf=lambda x: hasattr(x, "axes"),
        )
        optimizer = layerwise_decay(RATE, number)
        scaled, _ = optimizer.update(specs, optimizer.init(specs))
        for path, x in tree.flatten(scaled).items():
            first = float(x.reshape(-1)[0])
            inside = path.startswith(("layers/", "h/"))
            table = path.endswith("embedding") or path.startswith("embeddings_norm/")
            power = number if inside else number + 1 if table else 0
            assert first == pytest.approx(RATE**power, rel=1e-4), (name, path)


def fmjax_abstract(model):
    import fmjax

    return fmjax.abstract_params(model)


@pytest.fixture
def families():
    import fmjax

    names = ("gpt2", "llama-7b", "falcon-7b", "gemma-2b", "bert-base")
    return {name: fmjax.build(name) for name in names}


def test_the_dtype_stays():
    flat = scales({"layers": {"kernel": jnp.ones((LAYERS, 2), jnp.bfloat16)}})
    assert flat["layers/kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: layerwise_decay(0.0, 2), "rate 0.0 must lie in"),
        (lambda: layerwise_decay(1.5, 2), "rate 1.5 must lie in"),
        (lambda: layerwise_decay(0.9, 0), "0 layers; give"),
        (lambda: scales({"layers": {"k": jnp.ones((2, 2))}}), r"layers/k is \[2, 2\]"),
        (lambda: scales({"layers_3": {"k": jnp.ones(2)}}), "there is layers_3/k"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ConfigError, match=text):
        call()
