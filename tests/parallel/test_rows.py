"""Rows of a batch, from two processes onto meshes of every kind."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quick import environ

from fmjax.core.errors import ShardingError
from fmjax.parallel import DEFAULT_RULES, make_mesh, shard_batch
from fmjax.parallel.rows import own_rows

WORKER = """
import sys
import jax
import numpy as np
from jax.experimental import multihost_utils

jax.config.update("jax_num_cpu_devices", 2)
from fmjax.parallel import DEFAULT_RULES, make_mesh, shard_batch, start
from fmjax.parallel.rows import own_rows

group = start(sys.argv[1], 2, int(sys.argv[2]), timeout=120)
devices = jax.devices()
orders = {"plain": devices, "mixed": [devices[i] for i in (0, 2, 1, 3)]}
whole = {"ids": np.arange(8 * 3, dtype=np.int32).reshape(8, 3)}
mine = {"ids": whole["ids"][4 * group.index : 4 * group.index + 4]}
direct = []
for order, chosen in orders.items():
    for sizes in ({"data": 4}, {"data": 1, "tensor": 4}, {"data": 2, "tensor": 2}):
        mesh = make_mesh(**sizes, devices=chosen)
        placed = shard_batch(mine, mesh, DEFAULT_RULES)["ids"]
        assert placed.shape == (8, 3) and placed.sharding.mesh == mesh
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), whole["ids"][shard.index])
        direct.append(own_rows(placed.sharding, placed.shape))
mesh = make_mesh(data=2, context=2, devices=orders["mixed"])
tokens = {"input_ids": np.arange(8 * 4, dtype=np.int32).reshape(8, 4)}
part = {"input_ids": tokens["input_ids"][4 * group.index : 4 * group.index + 4]}
placed = shard_batch(part, mesh, DEFAULT_RULES)["input_ids"]
for shard in placed.addressable_shards:
    assert shard.data.shape == (4, 2)
    np.testing.assert_array_equal(np.asarray(shard.data), tokens["input_ids"][shard.index])
assert direct == [True, False, True, False, False, False], direct
print("done", flush=True)
"""


def test_every_device_gets_its_rows_whoever_read_them():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ(),
        )
        for i in range(2)
    ]
    try:
        outputs = [w.communicate(timeout=240)[0] for w in workers]
    finally:
        for w in workers:
            w.kill()
            w.wait()
    assert [w.returncode for w in workers] == [0, 0], outputs


def test_one_process_has_all_rows():
    mesh = make_mesh(data=2, tensor=4)
    assert own_rows(NamedSharding(mesh, PartitionSpec("data")), (8, 3))
    batch = {"ids": np.arange(8)}
    assert shard_batch(batch, mesh, DEFAULT_RULES)["ids"].tolist() == list(range(8))
    assert len(jax.devices()) == 8


def test_rows_that_do_not_divide():
    with pytest.raises(ShardingError, match="a batch of 6 rows does not divide over data=4"):
        shard_batch({"ids": np.arange(6)}, make_mesh(data=4, tensor=2), DEFAULT_RULES)
