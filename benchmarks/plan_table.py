"""Memory of full training steps on TPU pods, compiled ahead of time with no TPU present.

    pip install libtpu
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/plan_table.py

Parameters are fully sharded over all chips: float32 master weights, float32 AdamW moments, compute
in bfloat16. GiB of a chip = arguments + temporaries + outputs − what of these shares memory, as the
compiler counts them; nothing is allocated. MaxText is version 0.2.5 at its default settings,
compiled for the same topologies. The exit status is 1 if a step is over its goal. One row alone:

    … --row 7b-v5p-16-full
"""

import argparse
import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies

import fmjax
from fmjax.objectives import CausalLM
from fmjax.parallel import make_mesh
from fmjax.train import adamw, make_step


@dataclasses.dataclass(frozen=True)
class Row:
    """One step: `batch` rows of `seq` tokens on each chip of `topology`.

    Attributes:
      remat: the policy, see `fmjax.nn.stack.REMAT`.
      goal: GiB that the step may take.
      maxtext: GiB that MaxText takes; None where it does not fit.
    """

    model: str
    topology: str
    batch: int
    seq: int
    remat: str
    goal: float
    maxtext: float | None


ROWS = {
    "7b-v5p-16-full": Row("llama-7b", "v5p:2x2x4", 4, 4096, "full", 14.4, 15.46),
    "7b-v5p-16-attention": Row("llama-7b", "v5p:2x2x4", 4, 4096, "attention", 30, 52.29),
    "7b-v5p-64-minimal": Row("llama-7b", "v5p:4x4x4", 4, 4096, "minimal", 45, 45.90),
    "7b-v5e-16-full": Row("llama-7b", "v5e:4x4", 1, 4096, "full", 9.0, 9.36),
    "7b-v6e-16-full": Row("llama-7b", "v6e:4x4", 12, 4096, "full", 27.9, 29.88),
    "3.1-8b-v5p-64-full": Row("llama3.1-8b", "v5p:4x4x4", 4, 8192, "full", 18.5, 27.49),
    "7b-v5e-16-qkv": Row("llama-7b", "v5e:4x4", 4, 2048, "qkv", 15.75, None),
}


def compile_row(row: Row, **execution):
    """The compiled step of a row."""
    topology = topologies.get_topology_desc(row.topology, platform="tpu")
    mesh = make_mesh(data=1, fsdp=-1, devices=topology.devices)
    # Positions are rotations: they reach as far as the rows.
    override = {"max_position_embeddings": max(row.seq, 2048)} if row.model == "llama-7b" else {}
    model = fmjax.build(
        row.model, override=override, dtype="bfloat16", remat=row.remat, **execution
    )
    step = make_step(model, CausalLM(), adamw(3e-4), mesh=mesh)
    state = step.abstract_state({"params": fmjax.abstract_params(model)})
    shape = (row.batch * mesh.size, row.seq)
    inputs = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32)
        for name in ("input_ids", "position_ids", "segment_ids")
    }
    return step.compile(state, inputs)


def gib(memory) -> tuple[float, float, float]:
    """(arguments, temporaries, the step's whole memory) in GiB."""
    whole = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return tuple(
        x / 2**30 for x in (memory.argument_size_in_bytes, memory.temp_size_in_bytes, whole)
    )


def report(name: str, row: Row) -> bool:
    """Prints a row; False if it is over its goal."""
    begun = time.perf_counter()
    arguments, temporaries, whole = gib(compile_row(row).memory_analysis())
    print(
        f"{name:20} {row.batch} × {row.seq} tokens a chip, remat {row.remat:9} "
        f"arguments {arguments:5.2f}  temporaries {temporaries:5.2f}  whole {whole:5.2f} GiB  "
        f"goal {row.goal:5.2f}  MaxText {row.maxtext or 'does not fit'}  "
        f"({time.perf_counter() - begun:.0f} s)",
        flush=True,
    )
    return whole <= row.goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=ROWS)
    args = parser.parse_args()
    names = [args.row] if args.row else list(ROWS)
    sys.exit(not all([report(name, ROWS[name]) for name in names]))


if __name__ == "__main__":
    main()
