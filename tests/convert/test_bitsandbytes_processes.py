"""Packing while loading, and writing what is packed, with two processes."""

import socket
import subprocess
import sys

import jax
import pytest
from quick import environ

import fmjax
from fmjax import hub

WORKER = """
import sys
import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))

import fmjax

mesh = fmjax.make_mesh(data=1, fsdp=4)
model, params = fmjax.from_pretrained(sys.argv[3], quantize="nf4", mesh=mesh)
codes = params["layers"]["mlp"]["up_proj"]["kernel"].codes
assert codes.addressable_shards[0].data.size * 4 == codes.size
fmjax.save_pretrained(sys.argv[4], model, params)
"""
SMALL = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    model = fmjax.build(SMALL)
    fmjax.save_pretrained(tmp_path / "in", model, fmjax.init_params(model, jax.random.key(0)))
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i), tmp_path / "in", tmp_path / "out"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ(),
        )
        for i in range(2)
    ]
    outputs = [w.communicate(timeout=240)[0] for w in workers]
    assert [w.returncode for w in workers] == [0, 0], outputs
    hub.convert(tmp_path / "in", tmp_path / "one", quantize="nf4")
    ours, one = ((tmp_path / d / "model.safetensors").read_bytes() for d in ("out", "one"))
    assert ours == one
