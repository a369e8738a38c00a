"""Convolutions: as torch has them, and with low-rank factors as PEFT puts them on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import peft
from fmjax.convert import Row, targets
from fmjax.convert.transforms import Permute
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.nn.conv import Conv
from fmjax.nn.param import abstract
from fmjax.peft import lora, lora_files, lora_math
from fmjax.peft.base import Base, Weight

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(2, 9, 8, 6)).astype(np.float32)  # [B, H, W, in]
GEOMETRIES = {
    "plain": dict(kernel_size=(3, 3)),
    "patches": dict(kernel_size=(4, 4), stride=(4, 4), bias=False),
    "strided and padded": dict(kernel_size=(3, 2), stride=(2, 1), padding=1),
    "pointwise": dict(kernel_size=(1, 1)),
    "grouped": dict(kernel_size=(3, 3), padding=1, groups=2),
}
OIHW_TO_HWIO = Permute((2, 3, 1, 0))


def pair(kernel_size, stride=(1, 1), padding=0, groups=1, bias=True):
    """A module of torch with one convolution, ours, and its parameters."""
    import torch

    torch.manual_seed(0)
    conv = torch.nn.Conv2d(6, 4, kernel_size, stride, padding, groups=groups, bias=bias)
    ours = Conv(4, kernel_size, ("embed", "mlp"), stride, padding, groups=groups, use_bias=bias)
    params = {"kernel": OIHW_TO_HWIO.forward(conv.weight.detach().numpy())}
    if bias:
        params["bias"] = conv.bias.detach().numpy()
    return torch.nn.Sequential(conv), ours, jax.tree.map(jnp.asarray, params)


def base_of(model):
    """What an adapter knows of a model that is one convolution."""
    flat = tree.flatten(abstract(model, {"x": jnp.asarray(X)}))
    rows = [Row("0.weight", "kernel", OIHW_TO_HWIO)]
    rows += [Row("0.bias", "bias")] * model.use_bias
    # A module at the top has no path; one below another has.
    flat = {f"conv/{path}": spec for path, spec in flat.items()}
    rows = [Row(r.hf, f"conv/{r.path}", r.transform) for r in rows]
    found = tuple(Weight("conv", ("0",), flat[t.path], t) for t in targets(rows, flat))
    weights = tuple(w for w in found if w.leaf == "kernel")
    return Base(found, weights, (), (), {}, frozenset(), rows, "conv", "Conv", model)


def run(module, x):
    """A torch module on [B, H, W, C]."""
    import torch

    return module(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_primitive_is_torchs(name):
    theirs, ours, params = pair(**GEOMETRIES[name])
    y = ours.apply({"params": params}, X)
    np.testing.assert_allclose(y, run(theirs, X).detach(), atol=1e-5)


def test_same_padding_halves_the_image():
    model = Conv(4, (3, 3), ("embed", "mlp"), stride=(2, 2), padding="SAME")
    y, variables = model.init_with_output(KEY, jnp.asarray(X))
    assert y.shape == (2, 5, 4, 4)
    assert variables["params"]["kernel"].shape == (3, 3, 6, 4)


@pytest.mark.parametrize(
    "config", [{}, dict(use_dora=True), dict(lora_bias=True)], ids=["LoRA", "DoRA", "lora_bias"]
)
@pytest.mark.parametrize("name", [n for n in GEOMETRIES if n != "grouped"])
def test_factors_of_peft(kit, tmp_path, name, config):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.numpy import load_file, save_file

    module, ours, params = pair(**GEOMETRIES[name])
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["0"], **config)
    theirs = kit.quiet(get_peft_model, module, config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    kit.quiet(theirs.save_pretrained, tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "adapter_model.safetensors")

    base = base_of(ours)
    spec = peft.LoRA(
        rank=2, alpha=5, targets=("0",), use_dora=config.use_dora, lora_bias=config.lora_bias
    )
    shapes = lora_files.shapes(spec, base)
    assert shapes == {name: x.shape for name, x in tensors.items()}
    flat = lora_files.unpack(spec, base, tensors)
    described = tree.flatten(lora.abstract(spec, base))
    assert {p: x.shape for p, x in flat.items()} == {p: s.shape for p, s in described.items()}
    trained = theirs.get_nb_trainable_parameters()[0]
    assert lora.count(spec, base) == trained
    back = lora_files.pack(spec, base, flat)
    assert back.keys() == tensors.keys()
    for key, x in back.items():
        np.testing.assert_array_equal(x, tensors[key])

    adapter = jax.tree.map(jnp.asarray, tree.unflatten(flat)["conv"])
    expected = run(theirs, X)
    weights = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(weights)).mean().backward()

    def loss(adapter):
        y = ours.apply({"params": params, "adapter": adapter}, X)
        return (y * weights).mean(), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(adapter)
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    gradient["lora_scale"] = adapter["lora_scale"]
    gradient = jax.tree.map(np.asarray, gradient)
    filed = lora_files.pack(spec, base, {f"conv/{k}": x for k, x in gradient.items()})
    for key, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            key = key.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
            np.testing.assert_allclose(filed[key], parameter.grad, rtol=1e-4, atol=1e-5)

    # Without the bias of its factors it can be merged.
    if not config.lora_bias:
        merged = params | {"kernel": lora_math.merged(params["kernel"], adapter)}
        np.testing.assert_allclose(ours.apply({"params": merged}, X), y, atol=1e-5)
    (tmp_path / "ours").mkdir()
    save_file(back, tmp_path / "ours" / "adapter_model.safetensors")
    text = (tmp_path / "theirs" / "adapter_config.json").read_text()
    (tmp_path / "ours" / "adapter_config.json").write_text(text)
    fresh = pair(**GEOMETRIES[name])[0]
    again = kit.quiet(PeftModel.from_pretrained, fresh, tmp_path / "ours")
    np.testing.assert_array_equal(run(again, X).detach(), expected.detach())


def test_groups_share_the_rank(kit):
    """A mixes all channels, B works in groups: r / groups rows of it for each."""
    import torch
    from peft import LoraConfig, get_peft_model

    module, ours, params = pair(**GEOMETRIES["grouped"])
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"])
    theirs = kit.quiet(get_peft_model, module, config)
    layer = theirs.base_model.model[0]
    a, b = (getattr(layer, n)["default"].weight for n in ("lora_A", "lora_B"))
    with torch.no_grad():
        b.add_(torch.randn_like(b))
    adapter = {
        "lora_a": OIHW_TO_HWIO.forward(a.detach().numpy()),
        "lora_b": OIHW_TO_HWIO.forward(b.detach().numpy())[0, 0],
        "lora_scale": jnp.float32(1),
    }
    assert adapter["lora_b"].shape == (2, 4)
    y = ours.apply({"params": params, "adapter": adapter}, X)
    np.testing.assert_allclose(y, run(theirs, X).detach(), atol=1e-5)
    with pytest.raises(ConfigError, match="does not fit its kernel.*in 2 groups"):
        ours.apply({"params": params, "adapter": adapter | {"magnitude": jnp.ones(4)}}, X)
    with pytest.raises(ConfigError, match="does not fit its kernel"):
        wrong = adapter | {"lora_a": adapter["lora_a"][:, :, :3]}
        ours.apply({"params": params, "adapter": wrong}, X)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_fresh_adapter_changes_nothing(use_dora):
    _, ours, params = pair(**GEOMETRIES["plain"])
    spec = peft.LoRA(rank=64, targets=("0",), use_dora=use_dora)
    adapter = lora.init(KEY, spec, base_of(ours), {"conv": params})["conv"]
    y = ours.apply({"params": params, "adapter": adapter}, X)
    np.testing.assert_allclose(y, ours.apply({"params": params}, X), atol=1e-5)
    bound = (3 * 3 * 6) ** -0.5
    assert 0.95 * bound < jnp.abs(adapter["lora_a"]).max() <= bound


def test_dropout_meets_the_low_rank_branch_alone():
    _, ours, params = pair(**GEOMETRIES["plain"])
    spec = peft.LoRA(rank=2, targets=("0",), dropout=0.5)
    adapter = lora.init(KEY, spec, base_of(ours))["conv"]
    adapter["lora_b"] += 1
    variables = {"params": params, "adapter": adapter}
    y = ours.apply(variables, X, rngs={"dropout": KEY})
    assert jnp.abs(y - ours.apply(variables, X)).max() > 0.01
    silent = variables | {"adapter": adapter | {"lora_b": jnp.zeros_like(adapter["lora_b"])}}
    np.testing.assert_array_equal(
        ours.apply(silent, X, rngs={"dropout": KEY}), ours.apply({"params": params}, X)
    )
