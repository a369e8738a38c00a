"""CLIP and SigLIP of transformers, and what it takes to compare their twins here with them."""

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
VOCAB = 61

_TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=9,
    bos_token_id=58,
    eos_token_id=60,
    pad_token_id=1,
)
_VISION = dict(
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=12,
    patch_size=4,
)


def text(**options):
    return _TEXT | options


def vision(**options):
    return _VISION | options


def two(name, text_options=None, vision_options=None, **options):
    config = getattr(transformers, f"{name}Config")
    return config(
        text_config=text(**(text_options or {})),
        vision_config=vision(**(vision_options or {})),
        **options,
    )


def make(parity, cls, config, directory, dtype="float32"):
    """A random reference model whose outputs are far from zero."""
    import torch

    made = getattr(transformers, cls)

    class Wilder(made):
        def __init__(self, config):
            super().__init__(config)
            with torch.no_grad():
                for p in self.parameters():
                    if p.ndim > 1:
                        p.copy_(torch.randn_like(p) * (0.15 if p.ndim == 2 else 0.3))

    Wilder.__name__ = cls
    parity.reference(Wilder, config, directory, dtype)
    return made.from_pretrained(directory, attn_implementation="eager").eval()


def images(config, height=None, width=None, rows=3):
    size = config.image_size
    shape = (rows, height or size, width or size, config.num_channels)
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def texts(config, length=9):
    """A full text, one padded on the right, one whose end comes early and again as padding."""
    rng = np.random.default_rng(1)
    ids = rng.integers(4, 57, (3, length))
    end = getattr(config, "eos_token_id", 60)
    end = 60 if end == 2 else end
    ids[:, 0] = 58
    ids[0, -1] = end
    ids[1, 5:] = [end, *[1] * (length - 6)]
    ids[2, 3:] = end
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def theirs(hf, inputs, **options):
    """Every array of the reference's output, {"vision_model_output.pooler_output": …}."""
    import torch

    inputs = {k: torch.tensor(v) for k, v in inputs.items()}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].permute(0, 3, 1, 2)
    with torch.no_grad():
        return flat(hf(**inputs, output_hidden_states=True, **options))


def flat(output, prefix=""):
    found = {}
    for name, value in output.items():
        if name == "attentions" or value is None:
            continue
        if isinstance(value, tuple):
            found |= {f"{prefix}{name}.{i}": x.numpy() for i, x in enumerate(value)}
        elif hasattr(value, "items"):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value.numpy()
    return found


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def apply(model, params, inputs):
    return model.apply({"params": params}, **inputs, output_hidden_states=True)


def arrays(inputs):
    return {
        k: jnp.asarray(v, None if v.dtype == np.float32 else jnp.int32) for k, v in inputs.items()
    }


def field(out, name):
    for part in name.split("."):
        out = out[int(part)] if part.isdigit() else getattr(out, part)
    return out


def compare(hf, model, params, inputs, renamed=(), **options):
    """Every array of the reference's output, but the slots of a text behind its mask."""
    expected = theirs(hf, inputs, **options)
    out = apply(model, params, arrays(inputs))
    keep = inputs["attention_mask"].astype(bool) if "attention_mask" in inputs else None
    names = dict(renamed)
    for name, value in expected.items():
        path = names.get(name, name)
        if not path:
            continue
        got = np.asarray(field(out, path))
        assert got.shape == value.shape, (name, got.shape, value.shape)
        assert np.abs(value).max() > 0.05, f"{name}: near zero would agree with anything"
        if keep is not None and value.shape[:2] == keep.shape and "vision" not in name:
            got, value = got[keep], value[keep]
        np.testing.assert_allclose(got, value, rtol=0, atol=ATOL, err_msg=name)
    return out


def compare_files(source, target):
    a, b = open_directory(source), open_directory(target)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert tensor.view().tobytes() == b[name].view().tobytes(), name


def compare_export(hf, source, target, model, params, inputs, **options):
    """Files equal bit for bit, and transformers reads the export to the same outputs."""
    fmjax.save_pretrained(target, model, params, **options)
    compare_files(source, target)
    assert not (target / "generation_config.json").exists()
    assert json.loads((target / "config.json").read_text())["architectures"] == [type(hf).__name__]
    again, info = type(hf).from_pretrained(
        target, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    expected = theirs(hf, inputs)
    for name, value in theirs(again.eval(), inputs).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def compare_gradients(hf, model, params, inputs, their_loss, our_loss):
    """Gradients of a scalar of the outputs with respect to every tensor of the file."""
    import torch

    hf.zero_grad()
    torch_inputs = {k: torch.tensor(v) for k, v in inputs.items()}
    if "pixel_values" in torch_inputs:
        torch_inputs["pixel_values"] = torch_inputs["pixel_values"].permute(0, 3, 1, 2)
    their_loss(hf(**torch_inputs)).backward()

    def loss(params):
        return our_loss(model.apply({"params": params}, **arrays(inputs)))

    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    rows = get_family(model.config.model_type).rows(model.config)
    ours = {i.name: i.read() for i in param_items(rows, grads)}
    expected = {
        n: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for n, p in hf.named_parameters()
    }
    assert ours.keys() == expected.keys()
    moved = 0
    for name, grad in expected.items():
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=ATOL, err_msg=name)
        moved += np.abs(grad).max() > 1e-3
    assert moved > 0.7 * len(expected), "gradients near zero would agree with anything"
