"""The printout of how arrays lie on devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.parallel import describe, make_mesh


def test_arrays_and_where_they_lie():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def place(shape, *spec):
        return jax.device_put(jnp.zeros(shape), NamedSharding(mesh, PartitionSpec(*spec)))

    tree = {
        "params": {
            "embed": place((64, 16), "tensor", "fsdp"),
            "wide": place((8, 4), ("data", "fsdp")),
            "norm": place((16,)),
            "unsplit": place((16,), "expert"),
        },
        "rng": jax.random.key(0),
        "planned": jax.ShapeDtypeStruct((4,), np.int32),
        "text": "no array",
    }
    lines = [" ".join(line.split()) for line in describe(tree).splitlines()]
    assert lines == [
        "params/embed float32[64, 16] (tensor, fsdp) 1.0 kB",
        "params/norm float32[16] whole 64 B",
        "params/unsplit float32[16] whole 64 B",
        "params/wide float32[8, 4] (data·fsdp, -) 32 B",
        "planned int32[4] nowhere yet 16 B",
        "rng key<fry>[] one device 8 B",
        "6 arrays, 4.4 kB in all, 1.2 kB on a device",
    ]
    short = describe(tree, least=1000).splitlines()
    assert len(short) == 2 and short[0].startswith("params/embed")
    assert describe({}) == "0 arrays, 0 B in all, 0 B on a device"
