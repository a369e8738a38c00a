"""Packed kernels inside models: values, gradients, layouts, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fmjax
from fmjax import peft, quant
from fmjax.core import tree
from fmjax.core.errors import ConfigError, ShardingError
from fmjax.core.execution import Execution
from fmjax.nn.dense import Dense
from fmjax.nn.embed import Embed
from fmjax.nn.stack import unstack
from fmjax.parallel import DEFAULT_RULES

FORMATS = ("nf4", "nf4-single", "int8")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 64,
    "n_embd": 48,  # No multiple of 64: flat codes.
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "initializer_range": 0.2,
}
IDS = np.random.default_rng(0).integers(0, 61, (4, 8)).astype(np.int32)


def pack(params, fmt):
    """All dense kernels of the layers, packed."""

    def leaf(path, x):
        if not path.endswith("/kernel") or path.startswith("lm_head"):
            return x
        return quant.quantize(x, fmt, lead=int("_" not in path.split("/")[0]))

    return tree.map_with_path(leaf, params)


def unpack(params):
    return tree.map_with_path(
        lambda _, x: x.dequantize() if isinstance(x, quant.Packed) else x, params
    )


def loss(model):
    def value(adapter, params):
        logits = model.apply({"params": params, "adapter": adapter}, input_ids=IDS).logits
        return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)

    return jax.jit(jax.value_and_grad(value))


def adapter_of(model, params):
    adapter = peft.init(jax.random.key(1), peft.LoRA(4, targets="all-linear"), model, params)
    noise = iter(jax.random.split(jax.random.key(2), 100))
    return tree.map_with_path(
        lambda path, x: (
            0.1 * jax.random.normal(next(noise), x.shape) if path.endswith("lora_b") else x
        ),
        adapter,
    )


def assert_trees_close(a, b, **tolerance):
    flat = tree.flatten(b)
    for path, x in tree.flatten(a).items():
        np.testing.assert_allclose(
            np.asarray(x, np.float32), np.asarray(flat[path], np.float32), err_msg=path, **tolerance
        )


@pytest.mark.parametrize(
    ("shape", "fmt", "dtype", "tolerance"),
    [
        ((64, 5), "nf4", "float32", 1e-5),
        ((64, 5), "nf4-single", "float32", 1e-5),
        ((40, 3, 4), "nf4", "float32", 1e-5),
        ((40, 3, 4), "int8", "float32", 1e-5),
        ((64, 5), "nf4", "bfloat16", 2e-2),
        ((64, 5), "int8", "bfloat16", 2e-2),
    ],
)
def test_dense_over_packed_is_dense_over_the_dequantised_kernel(
    shape, fmt, dtype, tolerance
) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    dense = Dense(shape[1:], (None,) * len(shape), use_bias=True, execution=Execution(dtype=dtype))
    packed = quant.quantize(jax.random.normal(keys[0], shape), fmt)
    bias = jax.random.normal(keys[1], shape[1:])
    x = jax.random.normal(keys[2], (2, 3, shape[0]))

    def run(x, bias, kernel):
        y = dense.apply({"params": {"kernel": kernel, "bias": bias}}, x).astype(jnp.float32)
        return jnp.sum(jnp.sin(y)), y

    grad = jax.jit(jax.grad(run, (0, 1), has_aux=True))
    got, want = grad(x, bias, packed), grad(x, bias, packed.dequantize())
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("config", "fmt", "scan", "remat"),
    [
        (LLAMA, "nf4", True, "full"),
        (LLAMA, "nf4", False, "full"),
        (LLAMA, "int8", True, "none"),
        (GPT2, "nf4", True, "none"),
    ],
)
@pytest.mark.slow
def test_models_and_gradients_are_those_of_dequantised_kernels(config, fmt, scan, remat) -> None:
    model = fmjax.build(config, scan_layers=scan, remat=remat)
    params = fmjax.init_params(model, jax.random.key(0))
    packed = pack(params, fmt)
    adapter = adapter_of(model, params)
    got, want = loss(model)(adapter, packed), loss(model)(adapter, unpack(packed))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert_trees_close(got[1], want[1], rtol=1e-4, atol=1e-5)


def test_unstacked_layers_are_the_layers_of_the_stack() -> None:
    params = fmjax.init_params(fmjax.build(LLAMA), jax.random.key(0))
    whole = unstack(pack(params, "nf4"), "layers", 2)
    one_by_one = pack(unstack(params, "layers", 2), "nf4")
    jax.tree.map(np.testing.assert_array_equal, whole, one_by_one)


def test_decoding_with_a_cache() -> None:
    model = fmjax.build(LLAMA)
    params = pack(fmjax.init_params(model, jax.random.key(0)), "nf4")
    options = dict(max_new_tokens=4, eos_token_id=None)
    prompts = IDS[:2].tolist()
    got, want = (
        fmjax.generate(model, {"params": p}, prompts, **options) for p in (params, unpack(params))
    )
    np.testing.assert_array_equal(got.tokens, want.tokens)


def test_uint4_codes_are_the_same_weights() -> None:
    w = jax.random.normal(jax.random.key(0), (2, 128, 12))
    a, b = (quant.quantize(w, "nf4", lead=1, storage=s) for s in ("uint4", "uint8"))
    assert a.codes.dtype == jnp.uint4 and a.nbytes == b.nbytes
    np.testing.assert_array_equal(a.dequantize(), b.dequantize())
    layer = jax.tree.map(lambda x: x[1], a)
    again = quant.from_file(quant.to_file(layer), (128, 12), storage="uint4")
    jax.tree.map(np.testing.assert_array_equal, again, layer)


@pytest.mark.parametrize(
    ("shape", "axes", "codes", "scales"),
    [
        ((128, 6), ("embed", "mlp"), ("fsdp", "tensor"), ("fsdp", "tensor")),
        ((64, 6), ("embed", "mlp"), (None, "tensor"), (None, "tensor")),  # One block: whole.
        ((128, 3, 4), ("embed", "qkv", "heads"), ("fsdp", None, "tensor"), None),
        ((48, 6), ("embed", "mlp"), (None,), (None,)),  # Flat codes.
    ],
)
def test_sharded_is_unsharded(shape, axes, codes, scales) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    packed = quant.quantize(jax.random.normal(jax.random.key(0), shape), "nf4")
    where = quant.shardings(packed, axes, mesh, DEFAULT_RULES, "kernel")
    placed = jax.device_put(packed, where)
    assert placed.codes.sharding.spec == PartitionSpec(*codes)
    assert placed.absmax.sharding.spec == PartitionSpec(*(scales or codes))

    @jax.jit
    @jax.value_and_grad
    def loss(x, kernel):
        return jnp.sum(jnp.sin(quant.matmul(x, kernel)))

    x = jax.random.normal(jax.random.key(1), (8, shape[0]))
    on_mesh = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp")))
    for got, want in zip(loss(on_mesh, placed), loss(x, packed), strict=True):
        # Sums of up to 128 terms that cancel, taken in another order: relative to the largest.
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_an_output_axis_that_does_not_divide_is_refused_by_name() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("tensor",))
    packed = quant.quantize(jnp.ones((64, 6)), "nf4")
    with pytest.raises(ShardingError, match="some/kernel.*does not divide"):
        quant.shardings(packed, ("embed", "mlp"), mesh, DEFAULT_RULES, "some/kernel")


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", [(2, 64, 6), (2, 40, 3, 4)])
def test_abstract_nodes_are_those_that_packing_makes(shape, fmt) -> None:
    names = ("layers", "embed", *("qkv", "heads")[-(len(shape) - 2) :])
    spec = fmjax.core.params.ParamSpec(shape, jnp.dtype("bfloat16"), names)
    node = quant.abstract(spec, fmt)
    packed = quant.quantize(jnp.ones(shape, "bfloat16"), fmt, lead=1)
    assert jax.tree.structure(node) == jax.tree.structure(packed)
    assert node.shape == packed.shape == shape and node.dtype == packed.dtype == jnp.bfloat16
    assert packed.nbytes == sum(x.nbytes for x in jax.tree.leaves(packed))
    for a, b in zip(jax.tree.leaves(node), jax.tree.leaves(packed), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and len(a.axes) == b.ndim
        assert a.axes[0] == "layers"


def test_full_gives_the_kernel_without_a_gradient() -> None:
    packed = quant.quantize(jax.random.normal(jax.random.key(0), (64, 3)), "nf4")
    np.testing.assert_array_equal(quant.full(packed, jnp.float32), packed.dequantize())
    kernel = jnp.ones((2, 3))
    assert quant.full(kernel, jnp.bfloat16).dtype == jnp.bfloat16


def test_a_packed_table_is_refused_by_name() -> None:
    table = {"embedding": quant.quantize(jnp.ones((64, 64)), "nf4")}
    with pytest.raises(ConfigError, match="'embedding' is packed in NF4, which only the kernels"):
        Embed(64, 64).apply({"params": table}, jnp.zeros((1, 1), jnp.int32))


def test_a_packed_kernel_of_another_shape_is_refused() -> None:
    kernel = quant.quantize(jnp.ones((64, 3)), "int8")
    with pytest.raises(ConfigError, match=r"packed from shape \(64, 3\) where .* \(64, 4\)"):
        Dense(4, ("embed", None)).apply({"params": {"kernel": kernel}}, jnp.ones((1, 64)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quant.parse("fp4"), "quantize='fp4' is unknown; choose one of nf4"),
        (lambda: quant.NF4(blocksize=63), "blocksize 63 is not one of 32"),
        (lambda: quant.quantize(jnp.ones((4, 4), int), "nf4"), "cannot quantize int32"),
        (lambda: quant.quantize(jnp.ones(4), "nf4"), r"an array of shape \(4,\)"),
        (lambda: quant.quantize(jnp.ones((4, 4)), "nf4", storage="int4"), "storage 'int4'"),
        (
            lambda: quant.to_file(quant.quantize(jnp.ones((2, 64, 4)), "nf4", lead=1)),
            "one layer's kernel",
        ),
    ],
)
def test_what_cannot_be_packed_says_so(call, message) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("shape", [(256, 6), (256, 3, 4)])
def test_products_taken_in_pieces(shape, monkeypatch) -> None:
    packed = quant.quantize(jax.random.normal(jax.random.key(0), shape), "nf4")
    x = 0.05 * jax.random.normal(jax.random.key(1), (2, 3, shape[0]))

    def grad(packed):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(quant.matmul(x, packed))))(x)

    want = grad(packed)
    monkeypatch.setattr("fmjax.quant.nf4.PIECE", packed.size // 3)
    assert packed._pieces() == 4  # Of four blocks, three pieces cannot be made.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), grad(packed), want)
    monkeypatch.setattr("fmjax.quant.nf4.PIECE", 1)
    assert packed._pieces() == 4
