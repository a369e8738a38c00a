"""Learning rates by path, against PEFT's LoRA+ and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.train import adamw, freeze_layers, layerwise_decay, lora_plus, scale_by_path

LAYERS = 3


def run(optimizer, flat, grads):
    """{path: array} after the updates for each {path: gradient}."""
    params = tree.unflatten({path: jnp.asarray(x) for path, x in flat.items()})
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(tree.unflatten(g), state, params)
        params = optax.apply_updates(params, updates)
    return tree.flatten(params)


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = torch.nn.Embedding(7, 4)
        self.proj = torch.nn.Linear(4, 5)
        self.norm = torch.nn.LayerNorm(5)


def test_lora_plus_steps_are_those_of_peft():
    config = peft.LoraConfig(
        r=2, target_modules=["wte", "proj"], modules_to_save=["norm"], use_dora=True
    )
    model = peft.get_peft_model(Toy(), config)
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_lr_embedding=2e-3,
        loraplus_weight_decay=0.1, betas=(0.9, 0.99),
    )  # fmt: skip
    names = {
        "adapter/wte/lora_a": "wte.lora_embedding_A.default",
        "adapter/wte/lora_b": "wte.lora_embedding_B.default",
        "adapter/proj/lora_a": "proj.lora_A.default.weight",
        "adapter/proj/lora_b": "proj.lora_B.default.weight",
        "adapter/proj/magnitude": "proj.lora_magnitude_vector.default.weight",
        "adapter/norm/scale": "norm.modules_to_save.default.weight",
        "adapter/norm/bias": "norm.modules_to_save.default.bias",
    }
    torch_params = {
        path: model.get_parameter(f"base_model.model.{name}") for path, name in names.items()
    }
    rng = np.random.RandomState(0)
    start, grads = {}, [{}, {}]
    for path, p in torch_params.items():
        with torch.no_grad():
            p.copy_(torch.tensor(rng.randn(*p.shape)))
        start[path] = p.detach().numpy().copy()
        for g in grads:
            g[path] = rng.randn(*p.shape).astype(np.float32)
    for g in grads:
        for path, p in torch_params.items():
            p.grad = torch.tensor(g[path])
        optimizer.step()
    # torch decays a magnitude, which is one of group B and no bias: PEFT's choice, ours is by name.
    decay = [(r"(lora_a|lora_b|magnitude)$", True), (r".", False)]
    adam = adamw(1e-2, b2=0.99, weight_decay=0.1, decay=decay)
    got = run(optax.chain(adam, lora_plus(16.0, embedding=0.2)), start, grads)
    for path, p in torch_params.items():
        np.testing.assert_allclose(got[path], p.detach(), atol=1e-6, rtol=0, err_msg=path)


def test_rates_multiply_and_keep_the_dtype():
    ones = {"h": {"a": jnp.ones((LAYERS, 2))}, "top": {"b": jnp.ones(2, jnp.bfloat16)}}
    scaled = optax.chain(scale_by_path([(r"^h/", 0.5), (r".", 3.0)]), layerwise_decay(0.1, LAYERS))
    updates, _ = scaled.update(ones, scaled.init(ones), ones)
    np.testing.assert_allclose(updates["h"]["a"][:, 0], 0.5 * 0.1 ** np.arange(3, 0, -1), rtol=1e-5)
    assert updates["top"]["b"].dtype == jnp.bfloat16 and float(updates["top"]["b"][0]) == 3


def test_the_lowest_layers_stand_still():
    rng = np.random.RandomState(0)
    draw = lambda *shape: rng.randn(*shape).astype(np.float32)  # noqa: E731
    flat = {"params/h/mlp/kernel": draw(LAYERS, 2, 2), "params/ln_f/scale": draw(2)}
    grads = [{path: draw(*x.shape) for path, x in flat.items()} for _ in range(2)]
    adam = adamw(1e-2, weight_decay=0.5)
    moved = run(adam, flat, grads)
    frozen = run(optax.chain(adam, freeze_layers(2, LAYERS)), flat, grads)
    kernel = frozen["params/h/mlp/kernel"]
    np.testing.assert_array_equal(kernel[:2], flat["params/h/mlp/kernel"][:2])
    np.testing.assert_array_equal(kernel[2], moved["params/h/mlp/kernel"][2])
    np.testing.assert_array_equal(frozen["params/ln_f/scale"], moved["params/ln_f/scale"])
    apart = {f"layers_{i}/kernel": draw(2) for i in range(LAYERS)}
    still = run(optax.chain(adam, freeze_layers(1, LAYERS)), apart, [apart])
    changed = [path for path, x in still.items() if (x != apart[path]).any()]
    assert changed == ["layers_1/kernel", "layers_2/kernel"]


STACK = {"h": {"k": jnp.ones((2, 2))}}
TABLE = {"wte": {"lora_a": jnp.ones(2), "lora_b": jnp.ones(2)}}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: scale_by_path([("a", -1.0)]), "rate rule 'a': factor -1.0 must be finite"),
        (lambda: scale_by_path([("a/", 1.0)]).init(STACK), "no rate rule covers parameter 'h/k'"),
        (lambda: lora_plus(0.0), "ratio 0.0 must be positive"),
        (lambda: lora_plus(2.0).init(STACK), "no lora_b is trained"),
        (
            lambda: lora_plus(2.0).init(TABLE),
            "wte/lora_a belongs to .* give its rate as embedding=",
        ),
        (lambda: freeze_layers(3, 2), "3 of 2 layers cannot be frozen"),
        (lambda: freeze_layers(1, 3).init(STACK), r"h/k is \[2, 2\]; give the model's number"),
        (lambda: freeze_layers(1, 2).init({"x": jnp.ones(2)}), "no parameter belongs to a stack"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ConfigError, match=text):
        call()


def test_under_jit():
    optimizer = optax.chain(adamw(1e-2), freeze_layers(1, 2), scale_by_path([(r".", 2.0)]))
    state = optimizer.init(STACK)
    updates, _ = jax.jit(optimizer.update)(STACK, state, STACK)
    np.testing.assert_allclose(updates["h"]["k"][:, 0], [0.0, -0.02], rtol=1e-5)
