"""Packing, unpacking and files against bitsandbytes itself, bit for bit."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fmjax import quant
from fmjax.quant.codebook import DYNAMIC, NF4_BOUNDS, encode_dynamic
from fmjax.quant.double import ordered_sum

pytestmark = pytest.mark.optimised  # Other emitters of XLA's differ in the last bit.

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes.functional")

DTYPES = ("float32", "bfloat16", "float16")
# [in, *out]: whole blocks, several nested blocks, in no multiple of 64, odd tails, fused outputs.
SHAPES = ((64, 3), (128, 300), (96, 10), (100, 7), (33, 5), (7, 3), (128, 3, 32), (24, 3, 5))


@pytest.fixture(autouse=True)
def plain_torch():
    # bitsandbytes takes the mean of the scales with torch, in an order that follows the threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def kernel(shape, dtype, seed=0):
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    w *= np.exp(np.random.default_rng(seed + 1).standard_normal(shape[0]))[
        (..., *[None] * (len(shape) - 1))
    ].astype(np.float32)
    return w.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def as_torch(w):
    """The torch Linear weight [out, in] of a kernel."""
    matrix = torch.from_numpy(np.ascontiguousarray(w.reshape(w.shape[0], -1).T.astype(np.float32)))
    return matrix.to(getattr(torch, w.dtype.name))


def as_numpy(x):
    return x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()


def as_kernel(x, shape):
    """A dequantised torch weight as a kernel, f32."""
    return x.float().numpy().reshape(-1, shape[0]).T.reshape(shape)


def reference(w, double):
    return bnb.quantize_4bit(as_torch(w), quant_type="nf4", compress_statistics=double)


def dequantized(codes, state):
    """The kernel that bitsandbytes makes of them, f32 [in, out]."""
    outputs, inputs = state.shape
    if inputs % state.blocksize and inputs * outputs % 2 == 0:
        # Its AVX-512 kernel takes a row to begin a block; as one row, it does.
        state.shape = torch.Size((1, inputs * outputs))
    w = bnb.dequantize_4bit(codes, state).float().numpy()
    state.shape = torch.Size((outputs, inputs))
    return w.reshape(outputs, inputs).T


def tensors(codes, state):
    """As a state dict holds them, with our suffixes."""
    packed = {f".{k}": as_numpy(v) for k, v in state.as_dict(packed=True).items()}
    return {"": codes.numpy()} | packed


def same(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key].shape == value.shape and ours[key].dtype == value.dtype, key
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_bitsandbytes_bit_for_bit(shape, dtype, double) -> None:
    w = kernel(shape, dtype)
    packed = quant.quantize(w, quant.NF4(double))
    codes, state = reference(w, double)
    theirs = tensors(codes, state)
    same(quant.to_file(packed), theirs)
    back = dequantized(codes, state).reshape(shape)
    # A file of theirs, read here.
    read = quant.from_file(theirs, shape)
    assert read.dtype_name == dtype and read.shape == shape
    for node in (packed, read):
        for take in (lambda p: p.dequantize("float32"), jax.jit(lambda p: p.dequantize())):
            np.testing.assert_array_equal(np.asarray(take(node), np.float32), back)
    same(quant.to_file(read), theirs)


@pytest.mark.parametrize("blocksize", [32, 128])
def test_nf4_with_other_blocks(blocksize) -> None:
    w = kernel((256, 24), "bfloat16")
    codes, state = bnb.quantize_4bit(
        as_torch(w), blocksize=blocksize, quant_type="nf4", compress_statistics=True
    )
    packed = quant.quantize(w, quant.NF4(blocksize=blocksize))
    same(quant.to_file(packed), tensors(codes, state))


@pytest.mark.parametrize("shape", [(64, 8), (128, 6), (96, 10), (100, 6)])
def test_nf4_of_blocks_that_are_zero_or_on_the_bounds(shape) -> None:
    w = kernel(shape, "float32")
    w[:, 1] = 0
    flat = w.reshape(shape[0], -1).T.copy().reshape(-1)
    flat[:64] = np.resize(NF4_BOUNDS, 64)
    flat[0] = 1  # A scale of 1: the others are ties.
    flat[-3:] = 0
    w = flat.reshape(-1, shape[0]).T.copy()
    packed = quant.quantize(w, "nf4")
    codes, state = reference(w, True)
    same(quant.to_file(packed), tensors(codes, state))
    back = dequantized(codes, state).reshape(shape)
    np.testing.assert_array_equal(packed.dequantize(), back)


def test_nf4_of_an_incomplete_block_of_zeros() -> None:
    w = kernel((70, 5), "float32")
    w[:, 4] = 0
    codes, state = reference(w, True)
    same(quant.to_file(quant.quantize(w, "nf4")), tensors(codes, state))


def test_nf4_of_zeros_is_zero() -> None:
    w = np.zeros((128, 4), np.float32)
    packed = quant.quantize(w, "nf4")
    same(quant.to_file(packed), tensors(*reference(w, True)))
    np.testing.assert_array_equal(packed.dequantize(), w)


def test_the_dynamic_map_and_its_codes_are_bitsandbytes() -> None:
    np.testing.assert_array_equal(DYNAMIC, bnb.create_dynamic_map().numpy())
    ends = 0.5 * (DYNAMIC[1:] + DYNAMIC[:-1])
    ties = np.concatenate([np.nextafter(ends, -2), ends, np.nextafter(ends, 2), DYNAMIC])
    x = np.concatenate([[1], ties, np.linspace(-1, 1, 20001)]).astype(np.float32)
    codes, _ = bnb.quantize_blockwise(torch.tensor(x), blocksize=len(x))
    np.testing.assert_array_equal(jax.jit(encode_dynamic)(x), codes.numpy())


@pytest.mark.parametrize("n", [1, 3, 4, 7, 8, 31, 33, 100, 1000, 4096, 70001])
def test_sums_are_taken_in_the_order_of_torch(n) -> None:
    x = np.random.default_rng(n).random(n, np.float32)
    assert float(ordered_sum(jnp.asarray(x))) == torch.from_numpy(x).sum().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 8), (33, 5), (24, 3, 5)])
def test_int8_is_bitsandbytes_bit_for_bit(shape, dtype) -> None:
    w = kernel(shape, dtype)
    packed = quant.quantize(w, "int8")
    codes, scale, _ = bnb.int8_vectorwise_quant(as_torch(w))
    theirs = {"": codes.numpy(), ".SCB": scale.numpy(), ".weight_format": np.uint8(0)}
    same(quant.to_file(packed), theirs)
    back = as_kernel(bnb.int8_vectorwise_dequant(codes, scale), shape)
    read = quant.from_file(theirs, shape, "float32")
    np.testing.assert_array_equal(read.dequantize(), back)
    same(quant.to_file(read), theirs)


def test_int8_of_an_output_of_zeros() -> None:
    w = kernel((16, 3), "float32")
    w[:, 1] = 0
    packed = quant.quantize(w, "int8")
    assert not np.asarray(packed.dequantize())[:, 1].any()
