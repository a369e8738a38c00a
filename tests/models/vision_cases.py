"""Vision transformers of transformers, and what it takes to compare their twins here with them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from quick import QUICK

import fmjax
from fmjax.convert import open_directory, param_items
from fmjax.models.registry import get_family

ATOL = 1e-4
SMALL = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=12,
    patch_size=4,
    initializer_range=0.15,
)


def make(directory, case, dtype="float32"):
    """A random model of transformers saved in `directory`; case: (class, options).

    Nothing in it is left at zero or one: tokens, fixed positions, norms and biases are random too.
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    name, options = case
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**(SMALL | options)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return cls.from_pretrained(directory, attn_implementation="eager").eval()


def images(config, height=None, width=None, rows=2, seed=1):
    """Normalised pixels [rows, H, W, C], of the config's size unless told otherwise."""
    height, width = (
        (height, width)
        if height
        else (s * p for s, p in zip(config.grid, config.patch, strict=True))
    )
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, height, width, config.num_channels)).astype(np.float32)


def to_torch(name, value):
    import torch

    x = torch.tensor(value)
    return x.permute(0, 3, 1, 2).contiguous() if name == "pixel_values" else x


def theirs(hf, inputs, **options):
    """Every array of the reference's output, numpy."""
    import torch

    with torch.no_grad():
        out = hf(
            **{k: to_torch(k, v) for k, v in inputs.items()}, **options, output_hidden_states=True
        )
    out = dict(out)
    return {k: v.numpy() for k, v in out.items() if k != "hidden_states"} | {
        f"hidden_states[{i}]": h.numpy() for i, h in enumerate(out["hidden_states"])
    }


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, inputs):
    return model.apply({"params": params}, **inputs, output_hidden_states=True)


def compare(hf, model, params, inputs, skip=(), **options):
    """Every field of the reference's output."""
    expected = theirs(hf, inputs, **options)
    out = apply(model, params, {k: jnp.asarray(v) for k, v in inputs.items()})
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    hidden = {f"hidden_states[{i}]": h for i, h in enumerate(out.hidden_states)}
    for name, value in expected.items():
        if name in skip:
            continue
        got = hidden[name] if name in hidden else getattr(out, name)
        assert np.abs(value).max() > 0.1, f"{name}: near zero would agree with anything"
        np.testing.assert_allclose(got, value, rtol=0, atol=ATOL, err_msg=name)
    return out


def reload(directory, hf):
    """The export in the class that it names; nothing is missing, unexpected or newly drawn."""
    named = json.loads((directory / "config.json").read_text())["architectures"]
    assert named == [type(hf).__name__]
    again, info = getattr(transformers, named[0]).from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return again.eval()


def compare_files(source, target, renamed=lambda name: name):
    a, b = open_directory(source), open_directory(target)
    assert {renamed(name) for name in a} == b.keys()
    for name, tensor in a.items():
        other = b[renamed(name)]
        assert tensor.dtype == other.dtype
        assert tensor.view().tobytes() == other.view().tobytes(), name


def compare_export(hf, source, target, model, params, renamed=lambda name: name, **options):
    fmjax.save_pretrained(target, model, params, **options)
    compare_files(source, target, renamed)
    again = reload(target, hf)
    assert again.dtype == hf.dtype and again.config.id2label == hf.config.id2label
    for name, parameter in hf.state_dict().items():
        assert (again.state_dict()[name] == parameter).all(), name


def compare_gradients(hf, model, params, inputs, loss, own=None, fixed=(), **options):
    """Gradients by every tensor of the file of a loss of the output, written for both libraries.

    Args:
      own: the loss as a function of (params, inputs), where it is not `loss` of the output.
      fixed: names of tensors without gradient here.
    """
    hf.zero_grad()
    theirs = loss(hf(**{k: to_torch(k, v) for k, v in inputs.items()}, **options))
    theirs.backward()
    # Fixed positions have gradients in transformers, once they are read from files.
    expected = {n: p.grad.numpy() for n, p in hf.named_parameters() if n not in fixed}
    for name in [name for name in expected if ".gate_proj." in name]:
        up = expected.pop(name.replace(".gate_proj.", ".up_proj."))
        fused = np.concatenate([expected.pop(name), up])
        expected[name.replace(".gate_proj.", ".weights_in.")] = fused
    own = own or (lambda params, inputs: loss(model.apply({"params": params}, **inputs)))
    arrays = {k: jnp.asarray(v) for k, v in inputs.items()}
    value, grads = jax.jit(jax.value_and_grad(own), compiler_options=QUICK)(params, arrays)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    rows = get_family(model.config.model_type).rows(model.config)
    got = {i.name: i.read() for i in param_items(rows, grads)}
    names = in_memory(hf)
    assert expected.keys() <= {names(name) for name in got}
    for name, grad in got.items():
        if names(name) in fixed:
            assert not grad.any()
        elif names(name) in expected:
            want = expected[names(name)]
            np.testing.assert_allclose(grad, want, rtol=1e-4, atol=ATOL, err_msg=name)
            assert np.abs(want).max() > 1e-5 or name.endswith("key.bias"), name


def in_memory(hf):
    """Name in the files → name among the reference's parameters."""
    names = [
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ]
    if type(hf).__name__.startswith("Dinov2"):
        names = [pair for pair in names if pair[0].startswith("attention.")]
        names.append(("mlp.weights_out.", "mlp.down_proj."))

    def rename(name):
        for old, new in names:
            name = name.replace(old, new)
        return name

    return rename
