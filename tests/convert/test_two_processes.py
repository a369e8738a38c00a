"""Reading and writing with two processes that each see half of the devices."""

import socket
import subprocess
import sys

import jax
import pytest
from quick import environ

import fmjax

WORKER = """
import sys
import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))

import fmjax
import fmjax.convert.load as load

sizes, read = [], load.read_slice
def counting(*args):
    part = read(*args)
    sizes.append(part.nbytes)
    return part
load.read_slice = counting

model, params = fmjax.from_pretrained(sys.argv[3], mesh=fmjax.make_mesh(data=1, fsdp=4))
fmjax.save_pretrained(sys.argv[4], model, params, max_shard_size=3000)
print(sum(sizes))
"""
TINY = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.mark.slow
def test_each_process_reads_its_half_and_one_writes_the_whole(tmp_path):
    model = fmjax.build(TINY)
    params = fmjax.init_params(model, jax.random.key(0))
    fmjax.save_pretrained(tmp_path / "in", model, params, max_shard_size=3000)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    command = [sys.executable, "-c", WORKER, address]
    workers = [
        subprocess.Popen(
            [*command, str(i), tmp_path / "in", tmp_path / "out"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ(),
        )
        for i in range(2)
    ]
    outputs = [w.communicate(timeout=240)[0] for w in workers]
    assert [w.returncode for w in workers] == [0, 0], outputs
    norms = sum(x.size for x in jax.tree.leaves(params) if x.shape in ((16,), (2, 16))) * 4
    halves = (fmjax.param_count(model) * 4 - norms) // 2 + norms  # norms are replicated
    assert [int(o.split()[-1]) for o in outputs] == [halves, halves]
    files = [{p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("in", "out")]
    assert files[0] == files[1]
