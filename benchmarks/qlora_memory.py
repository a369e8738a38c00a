"""Peak memory of QLoRA steps on one TPU chip, compiled ahead of time with no TPU present.

    pip install libtpu
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/qlora_memory.py

NF4 with double quantisation in all linear layers, LoRA on all of them with a bfloat16 adapter, a
batch of 1 × 512 tokens, splash attention, AdamW with float32 or 8-bit moments. Prints one line a
step: the sizes are the compiler's own, in decimal GB, and nothing is allocated. The exit status is
1 if a peak is over its limit. One step alone, with other sizes:

    … --model llama-65b --topology v5p:1 --batch 1 --seq 512 --rank 64 --moments int8
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

import fmjax
from fmjax import peft, quant
from fmjax.core import tree
from fmjax.core.params import ParamSpec
from fmjax.objectives import CausalLM
from fmjax.train import adamw, make_step

LIMITS_GB = {
    ("llama-7b", "float32"): 7.0,
    ("llama-33b", "float32"): 24.0,
    ("llama-33b", "int8"): 24.0,
    ("llama-65b", "float32"): 46.5,
    ("llama-65b", "int8"): 42.0,
}

# One chip of a kind → the smallest topology that has it; the step gets its first device.
HOSTS = {"v5p:1": "v5p:2x2x1", "v5e:1": "v5e:1x1"}


def abstract_variables(model, rank: int) -> dict:
    """Base and adapter as `ParamSpec`s: NF4 kernels in the layers, the rest in bfloat16."""
    fmt = quant.NF4()

    def pack(path: str, spec: ParamSpec):
        if path.startswith("layers/") and path.endswith("/kernel"):
            return quant.abstract(spec, fmt, storage="uint4")
        return spec

    params = tree.map_with_path(pack, fmjax.abstract_params(model))
    adapter = peft.abstract(peft.LoRA(rank, targets="all-linear"), model, "bfloat16")
    return {"params": params, "adapter": adapter}


def compile_step(args: argparse.Namespace, name: str, moments: str):
    """The compiled step of one model on one chip."""
    topology = topologies.get_topology_desc(HOSTS[args.topology], platform="tpu")
    mesh = Mesh(np.array(topology.devices[:1]).reshape(1), ("fsdp",))
    model = fmjax.build(
        name,
        dtype="bfloat16",
        param_dtype="bfloat16",
        remat=args.remat,
        attention=args.attention,
    )
    step = make_step(model, CausalLM(), adamw(1e-4, moment_dtype=moments), mesh=mesh)
    state = step.abstract_state(abstract_variables(model, args.rank))
    ids = jax.ShapeDtypeStruct((args.batch, args.seq), jnp.int32)
    return step.lower(state, {"input_ids": ids}).compile()


def report(args: argparse.Namespace, name: str, moments: str) -> bool:
    """Prints the step's line; False if it passes its limit."""
    compiled = compile_step(args, name, moments)
    memory = compiled.memory_analysis()
    arguments, temporaries, peak = (
        x / 1e9
        for x in (
            memory.argument_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.peak_memory_in_bytes,
        )
    )
    limit = (
        LIMITS_GB.get((name, moments))
        if (args.batch, args.seq, args.rank) == (1, 512, 64)
        else None
    )
    print(
        f"{name:9}  {args.topology}  {args.batch} × {args.seq} tokens  moments {moments:7}  "
        f"arguments {arguments:5.2f} GB  temporaries {temporaries:4.2f} GB  peak {peak:5.2f} GB  "
        f"limit {'none' if limit is None else f'{limit:.1f} GB'}",
        flush=True,
    )
    return limit is None or peak <= limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--topology", choices=HOSTS, default="v5p:1")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--moments", choices=("float32", "int8"), default="float32")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--attention", default="splash")
    args = parser.parse_args()
    cases = [(args.model, args.moments)] if args.model else list(LIMITS_GB)
    sys.exit(not all([report(args, *case) for case in cases]))


if __name__ == "__main__":
    main()
