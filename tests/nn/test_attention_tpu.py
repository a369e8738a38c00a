"""Splash attention in training steps that are compiled for TPUs, with no TPU present."""

import fcntl
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import fmjax
from fmjax.models.llama.config import LlamaConfig
from fmjax.nn import attention_splash
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import adamw, make_step

pytestmark = [pytest.mark.optimised, pytest.mark.slow]

SEQUENCE = 4096


@pytest.fixture(scope="module")
def devices() -> Iterator[list[jax.Device]]:
    """Eight v5e chips that do not exist; tests that load their compiler wait for each other."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    with open(os.path.join(tempfile.gettempdir(), "fmjax-libtpu.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The persistent cache can write such programs and not read them.
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def compile_step(devices, layers=2, length=SEQUENCE, **execution):
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=SEQUENCE,
    )
    model = fmjax.build(config, dtype="bfloat16", **execution)
    step = make_step(model, CausalLM(), adamw(1e-4), mesh=make_mesh(1, 4, 2, devices=devices))
    state = step.abstract_state({"params": fmjax.abstract_params(model)})
    ids = jax.ShapeDtypeStruct((8, length), jnp.int32)
    return step.lower(state, {"input_ids": ids, "segment_ids": ids}).compile()


def kernels(compiled) -> Counter:
    """How often each of the three kernels is called in the compiled program."""
    calls = [x for x in compiled.as_text().splitlines() if 'custom_call_target="tpu_custom' in x]
    return Counter(re.search(r"splash_mha_(\w+?)_", x).group(1) for x in calls)


def test_kernels_are_in_the_step_and_take_less(devices, monkeypatch) -> None:
    """Under scan, and remat that saves attention: the forward kernel runs once."""
    # A kernel of blocks of 1024 takes a minute to compile; its memory is no other.
    monkeypatch.setattr(attention_splash, "block_size", lambda length, head_dim: 256)
    ours = compile_step(devices, remat="attention")
    assert kernels(ours) == {"fwd": 1, "dq": 1, "dkv": 1}
    theirs = compile_step(devices, remat="attention", attention="xla")
    assert not kernels(theirs)
    temporaries = [c.memory_analysis().temp_size_in_bytes for c in (ours, theirs)]
    assert 8 * temporaries[0] < temporaries[1]
    # The compiler counts what goes in and out of a kernel, and that is all its traffic but for
    # keys and values, which are read once for every block of queries.
    traffic = [c.cost_analysis()["bytes accessed"] for c in (ours, theirs)]
    assert 2 * traffic[0] < traffic[1]


def test_kernels_under_full_remat_and_without_scan(devices) -> None:
    # Smaller blocks, which are sooner compiled.
    options = {"layers": 1, "length": 256, "attention": "splash"}
    step = compile_step(devices, **options, remat="full", scan_layers=False)
    assert kernels(step) == {"fwd": 2, "dq": 1, "dkv": 1}
