"""What "auto" takes, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fmjax.core import logical
from fmjax.core.errors import ConfigError
from fmjax.nn import attention_choice
from fmjax.nn.attention_choice import Case, choose
from fmjax.nn.masks import Mask
from fmjax.parallel import make_mesh

CASE = Case(8, 32, 4096, 4096, 128, jnp.bfloat16, Mask(), platform="tpu")
texts = jnp.ones((8, 4096), jnp.int32)


def case(**changes):
    return dataclasses.replace(CASE, **changes)


def test_auto_on_a_tpu() -> None:
    padded = Mask(valid=texts > 0, segments=(texts, texts), window=512)
    assert [choose("auto", case(mask=m)) for m in (Mask(), padded)] == ["splash"] * 2
    assert choose("auto", case(queries=512, keys=512)) == "xla"
    traced = Mask(window=jnp.int32(9))
    assert choose("auto", case(mask=traced.replace(windows=(9, 50)))) == "splash"
    for change in ({"bias": True}, {"head_dim": 12}, {"mask": traced}, {"dtype": jnp.float16}):
        assert choose("auto", case(**change)) == "blockwise", change
    assert choose("auto", case(dropout=True)) == "xla"


def test_auto_elsewhere() -> None:
    for platform in ("cpu", "gpu"):  # A GPU that is not here has no cuDNN.
        assert choose("auto", case(platform=platform)) == "blockwise"
        assert choose("auto", case(platform=platform, queries=1000, keys=1000)) == "xla"
        assert choose("auto", case(platform=platform, batch=1, heads=1, keys=2048)) == "xla"


def test_decoding_through_a_cache_is_for_xla() -> None:
    for requested in ("auto", "xla", "splash", "cudnn"):
        step = case(queries=1, cached=True, mask=Mask(offset=jnp.int32(7)))
        assert choose(requested, step) == "xla"


def test_cudnn_on_the_gpus_that_have_it(monkeypatch) -> None:
    class Device:
        compute_capability = "8.0"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(logical, "device", Device)
    gpu = {"platform": "gpu"}
    window, moving = Mask(window=512), Mask(window=jnp.int32(512))
    for change in ({}, {"mask": window}, {"mask": moving}, {"mask": Mask(causal=False)}):
        assert choose("auto", case(**gpu, **change)) == "cudnn"
    for change in (
        {"dtype": jnp.float32},
        {"head_dim": 256},
        {"head_dim": 60},
        {"softcap": True},
        {"bias": True},
        {"mask": moving, "queries": 4095},
        {"mask": moving, "queries": 1 << 16, "keys": 1 << 16},
    ):
        assert choose("auto", case(**gpu, **change)) == "blockwise", change
        with pytest.raises(ConfigError, match="'cudnn'"):
            choose("cudnn", case(**gpu, **change))
    Device.compute_capability = "9.0"
    assert choose("auto", case(**gpu, head_dim=256)) == "cudnn"
    for older in ("7.5", "gfx942"):
        Device.compute_capability = older
        assert choose("auto", case(**gpu)) == "blockwise"


@pytest.mark.parametrize(
    ("requested", "change", "message"),
    [
        ("flash", {}, "unknown; choose one of auto, xla"),
        ("splash", {"head_dim": 100}, "multiples of 8, not 100"),
        ("splash", {"platform": "gpu"}, "runs on TPUs"),
        ("splash", {"dtype": jnp.float16}, "not in float16"),
        ("splash", {"bias": True}, "no bias"),
        ("splash", {"dropout": True}, "no dropout"),
        ("splash", {"mask": Mask(prefix=texts[:, 0])}, "no prefix"),
        ("splash", {"mask": Mask(offset=jnp.int32(1))}, "first slot is fixed"),
        ("splash", {"mask": Mask(window=jnp.int32(1))}, "sizes that a window may have"),
        ("splash", {"mask": Mask(virtual=2, segments=(texts, texts))}, "virtual tokens"),
        ("cudnn", {}, "NVIDIA GPUs that are present"),
        ("blockwise", {"dropout": True}, "no dropout"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had(requested, change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(requested, case(**change))


def test_the_platform_is_that_of_the_mesh() -> None:
    assert logical.platform() == "cpu"

    class Topology:
        platform = "tpu"

    mesh = make_mesh(1, devices=jax.devices()[:1])
    with logical.use(mesh, ()):
        assert logical.device() is jax.devices()[0]
    with jax.default_device(jax.devices()[3]):
        assert logical.device() is jax.devices()[3]
    assert set(attention_choice.IMPLEMENTATIONS) == {"auto", "xla", "blockwise", "splash", "cudnn"}
