"""ResNet against transformers: outputs, gradients, training-mode batch norm, exports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

import fmjax
from fmjax.convert import open_directory, param_items
from fmjax.core import logical
from fmjax.core.errors import CheckpointError, ConfigError, DataError
from fmjax.models.registry import build, get_family, presets
from fmjax.models.resnet.config import ResNetConfig
from fmjax.parallel import DEFAULT_RULES, make_mesh

ATOL = 1e-4
SMALL = {"embedding_size": 8, "hidden_sizes": (8, 16), "depths": (1, 2)}
CASES = {
    "basic": (None, SMALL | {"layer_type": "basic"}, (37, 51)),
    "basic-grey-halved": (
        "image-classification",
        SMALL
        | {"layer_type": "basic", "downsample_in_first_stage": True, "num_channels": 1}
        | {"num_labels": 5},
        (40, 33),
    ),
    "bottleneck": ("image-classification", SMALL | {"num_labels": 3}, (35, 48)),
    "bottleneck-halves-first": (
        None,
        {"embedding_size": 4, "hidden_sizes": [12, 8, 20], "depths": [2, 1, 1]}
        | {"downsample_in_bottleneck": True, "downsample_in_first_stage": True},
        (64, 64),
    ),
    "bottleneck-silu": (
        "image-classification",
        {"embedding_size": 8, "hidden_sizes": [8], "depths": [3], "hidden_act": "silu"},
        (32, 41),
    ),
}


def make(directory, name, dtype="float32"):
    """A random model of transformers with statistics that are not those of the start."""
    import torch
    import transformers

    head, options, _ = CASES[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cls = transformers.ResNetModel if head is None else transformers.ResNetForImageClassification
    model = cls(transformers.ResNetConfig(**options))
    with torch.no_grad():
        for key, x in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith("num_batches_tracked"):
                x.fill_(2**24 - 5)
            elif x.ndim == 1:
                x.add_(0.3 * torch.rand_like(x))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return cls.from_pretrained(directory).eval()


def test_files_without_counts_of_batches(tmp_path):
    from safetensors.numpy import load_file, save_file

    hf, file = make(tmp_path, "bottleneck"), tmp_path / "model.safetensors"
    tensors = load_file(file)
    counts = {name for name in tensors if name.endswith("num_batches_tracked")}
    save_file({n: x for n, x in tensors.items() if n not in counts}, file, {"format": "pt"})
    model, params = fmjax.from_pretrained(tmp_path)
    assert params["embedder"]["normalization"]["num_batches_tracked"] == 0
    x = pictures("bottleneck")
    import torch

    with torch.no_grad():
        expected = hf(torch.tensor(np.moveaxis(x, -1, 1))).logits
    found = jax.jit(model.apply)({"params": params}, x).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
    fmjax.hub.convert(tmp_path, tmp_path / "out")
    assert counts.isdisjoint(load_file(tmp_path / "out" / "model.safetensors"))


def pictures(name, rows=3):
    channels = CASES[name][1].get("num_channels", 3)
    return np.random.RandomState(3).randn(rows, *CASES[name][2], channels).astype(np.float32)


def nhwc(x):
    return np.moveaxis(x.detach().float().numpy(), 1, -1)


def theirs(hf, x, **options):
    import torch

    return hf(pixel_values=torch.tensor(np.moveaxis(x, -1, 1)), **options)


def compare(hf, model, params, x):
    import torch

    with torch.no_grad():
        expected = theirs(hf, x, output_hidden_states=True)
    run = jax.jit(
        lambda p, x: model.apply({"params": p}, pixel_values=x, output_hidden_states=True),
        compiler_options=QUICK,
    )
    got = run(params, x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=ATOL)  # noqa: E731
    assert len(got.hidden_states) == len(expected.hidden_states)
    for ours, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        close(ours, nhwc(other))
    if model.config.head is None:
        close(got.last_hidden_state, nhwc(expected.last_hidden_state))
        close(got.pooler_output, expected.pooler_output[:, :, 0, 0])
        return
    assert got.logits.dtype == jnp.float32 and expected.logits.abs().max() > 0.01
    close(got.logits, expected.logits)


def compare_export(hf, directory, out, model, params):
    fmjax.save_pretrained(out, model, params)
    before, after = open_directory(directory), open_directory(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert tensor.view().tobytes() == after[name].view().tobytes(), name
    again = type(hf).from_pretrained(out).eval()
    assert again.dtype == hf.dtype
    if str(hf.dtype) == "torch.float32":
        x = pictures("basic-grey-halved" if model.config.num_channels == 1 else "basic")
        np.testing.assert_array_equal(*(theirs(m, x)[0].detach().numpy() for m in (hf, again)))


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_export(tmp_path, name):
    hf = make(tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    compare(hf, model, params, pictures(name))
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def test_bfloat16_keeps_every_bit(tmp_path):
    hf = make(tmp_path / "hf", "bottleneck", "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    compare_export(hf, tmp_path / "hf", tmp_path / "out", model, params)


def in_training(model, mesh=None):
    """Jitted: (loss, (output vector, new statistics)), gradients; a cubic loss of all outputs."""

    def loss(params, x, target):
        with logical.use(mesh, DEFAULT_RULES):
            rngs = {"dropout": jax.random.key(0)}
            out, new = model.apply(
                {"params": params}, pixel_values=x, rngs=rngs, mutable=["batch_stats"]
            )
        y = out.pooler_output if model.config.head is None else out.logits
        return jnp.mean((y - target) ** 2), (y, new["batch_stats"])

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)


def target_of(hf, rows=4):
    size = hf.config.hidden_sizes[-1] if not hasattr(hf, "classifier") else hf.config.num_labels
    return np.random.RandomState(4).randn(rows, size).astype(np.float32)


def items(model, params):
    rows = get_family("resnet").rows(model.config)
    return {i.name: i.read() for i in param_items(rows, params)}


@pytest.mark.parametrize("name", CASES)
def test_training_mode_gradients_and_statistics(tmp_path, name):
    import torch

    hf = make(tmp_path, name).train()
    model, params = fmjax.from_pretrained(tmp_path)
    x, target = pictures(name, rows=4), target_of(hf)
    out = theirs(hf, x)
    y = out.logits if hasattr(hf, "classifier") else out.pooler_output[:, :, 0, 0]
    ((y - torch.tensor(target)) ** 2).mean().backward()

    (_, (ours, new)), grads = in_training(model)(params, x, target)
    np.testing.assert_allclose(ours, y.detach(), rtol=0, atol=ATOL)
    got = items(model, grads)
    for key, p in hf.named_parameters():
        np.testing.assert_allclose(got[key], p.grad, rtol=0, atol=ATOL, err_msg=key)
    assert max(p.grad.abs().max() for p in hf.parameters()) > 1e-3
    after = items(model, merged(params, new))
    for key, x in hf.named_buffers():
        np.testing.assert_allclose(after[key], x, rtol=1e-5, atol=1e-5, err_msg=key)
        if not key.endswith("tracked"):
            np.testing.assert_array_equal(got[key], 0)


def merged(params, new):
    flat = fmjax.core.tree.flatten(params) | fmjax.core.tree.flatten(new)
    return fmjax.core.tree.unflatten(flat)


def random_params(model):
    """Without a compiled initialisation."""
    rng = np.random.RandomState(6)

    def leaf(path, spec):
        x = rng.rand(*spec.shape) if path.endswith("var") else rng.randn(*spec.shape) * 0.3
        return jnp.asarray(x, spec.dtype)

    return fmjax.core.tree.map_with_path(leaf, fmjax.abstract_params(model))


def test_statistics_are_those_of_all_devices():
    model = build(ResNetConfig(**CASES["basic"][1]))
    params = random_params(model)
    x = np.random.RandomState(5).randn(8, 32, 32, 3).astype(np.float32)
    x *= np.arange(1, 9)[:, None, None, None]  # No device's rows look like another's.
    target = np.zeros((8, 16), np.float32)
    one, one_grads = in_training(model)(params, x, target)
    mesh = make_mesh(data=4, fsdp=2)
    eight, eight_grads = in_training(model, mesh)(params, x, target)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, one, eight)
    jax.tree.map(close, one_grads, eight_grads)


def test_rematerialised_blocks_and_small_images():
    options = SMALL | {"layer_type": "basic", "small_images": True}
    model = build(ResNetConfig(**options))
    params = random_params(model)
    assert params["embedder"]["convolution"]["kernel"].shape == (3, 3, 3, 8)
    x, target = pictures("basic", 2)[:, :16, :16], np.zeros((2, 16), np.float32)
    plain = in_training(model)(params, x, target)
    again = in_training(build(model.config, remat="full"))(params, x, target)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), plain, again)
    out = jax.eval_shape(lambda: model.apply({"params": params}, pixel_values=x))
    assert out.last_hidden_state.shape == (2, 8, 8, 16) and out.pooler_output.shape == (2, 16)
    assert ResNetConfig.from_hf(model.config.to_hf()) == model.config
    assert "no stem for small_images" in model.config.caveat and ResNetConfig().caveat is None
    assert "small_images" not in ResNetConfig().to_hf()


def test_published_sizes():
    # arXiv:1512.03385 and torchvision, of which batch norm's statistics are no parameters.
    millions = {"resnet-18": 11.18, "resnet-34": 21.28, "resnet-50": 23.51, "resnet-152": 58.14}
    for name, expected in millions.items():
        model = build(presets()[name])
        flat = fmjax.core.tree.flatten(fmjax.abstract_params(model))
        counted = [x for path, x in flat.items() if "running" not in path and "batches" not in path]
        assert sum(np.prod(x.shape) for x in counted) / 1e6 == pytest.approx(expected, abs=0.01)


def test_what_cannot_be(tmp_path):
    for options, message in (
        ({"layer_type": "wide"}, "layer_type='wide' is unknown; choose one of basic"),
        ({"depths": (1,)}, "must name as many stages"),
        ({"hidden_sizes": (10, 10, 10, 10)}, "must be multiples of 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            ResNetConfig(**options)
    model = build(ResNetConfig(**SMALL))
    params = fmjax.abstract_params(model)
    params = jax.tree.map(lambda spec: spec.struct(), params)

    def traced(shape, model=model, **options):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(
            lambda p, x: model.apply({"params": p}, pixel_values=x, **options), params, x
        )

    rngs = {"dropout": jax.random.key(0)}
    with pytest.raises(DataError, match="must be .batch, height, width, 3., channels last"):
        traced((1, 3, 32, 32))
    with pytest.raises(ConfigError, match="embedder/normalization: training changes"):
        traced((1, 32, 32, 3), rngs=rngs)
    with pytest.raises(DataError, match="one value a channel"):
        traced((1, 1, 1, 3), rngs=rngs, mutable=["batch_stats"])
    with pytest.raises(ConfigError, match="remat 'most' is unknown"):
        traced((1, 32, 32, 3), model=build(model.config, remat="most"))
    make(tmp_path, "basic")
    name = "embedder.embedder.normalization.num_batches_tracked"
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name] = tensors[name].astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="num_batches_tracked' holds float32 where int64"):
        fmjax.from_pretrained(tmp_path)
