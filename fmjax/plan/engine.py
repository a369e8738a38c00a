"""One step, compiled for devices that are not there, and what it takes."""

import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from fmjax.plan import assigned, hlo
from fmjax.plan.arithmetic import count
from fmjax.plan.result import Memory, Plan
from fmjax.plan.roofline import estimate
from fmjax.plan.topology import Topology
from fmjax.plan.traffic import saved_activations, tally

HOST = ("pinned_host", "unpinned_host")


def plan(
    step: Any,
    state: Any,
    batch: Mapping[str, Any],
    *,
    topology: Topology,
    model_flops: float,
    settings: Mapping[str, Any] | None = None,
    codegen: bool = True,
) -> Plan:
    """Plans a training step; nothing is allocated.

    Args:
      step: from `fmjax.train.make_step`, on a mesh of the topology's devices.
      state: `step.abstract_state(…)`.
      batch: `ShapeDtypeStruct`s [B, …] of the global batch.
      topology: what the mesh is of.
      model_flops: that the model needs for the batch on all devices, for the utilisation.
      settings: what the result calls it.
      codegen: see `plan_traced`.
    """
    tokens = math.prod(next(iter(batch.values())).shape)
    return plan_traced(
        lambda: step.trace(state, batch),
        topology=topology,
        mesh=step.mesh,
        weights=state.variables,
        optimizer=state.opt_state,
        tokens=tokens,
        model_flops=model_flops,
        settings=settings,
        codegen=codegen,
    )


def plan_traced(
    trace: Any,
    *,
    topology: Topology,
    mesh: jax.sharding.Mesh,
    weights: Any,
    optimizer: Any = None,
    activations: Any = None,
    tokens: int,
    model_flops: float,
    settings: Mapping[str, Any] | None = None,
    codegen: bool = True,
) -> Plan:
    """Plans whatever can be traced: a step of training, of decoding, of anything else.

    Args:
      trace: () → `jax.stages.Traced`, of a function of abstract arrays on the mesh.
      topology: what the mesh is of.
      mesh: its devices.
      weights, optimizer: trees of `ShapeDtypeStruct`s with shardings, among its arguments.
      activations: likewise what it keeps from step to step, such as a cache of keys and values.
      tokens: that it processes, on all devices.
      model_flops: that the model needs for them.
      settings: what the result calls it.
      codegen: also have the machine code written, which takes a TPU's compiler most of its time and
        changes no figure. Without it a process should end afterwards, see `assigned`.
    """
    start, chip = time.monotonic(), topology.chip
    traced = trace()
    counted = count(traced.jaxpr)
    flops, int8 = counted.flops / mesh.size, counted.int8 / mesh.size
    sizes, text, used = compile_for(traced.lower(), chip.platform, codegen)
    seconds = time.monotonic() - start
    held = {"weights": device_bytes(weights), "optimizer": device_bytes(optimizer)}
    common = {
        "topology": topology.text,
        "chip": chip.name,
        "devices": mesh.size,
        "mesh": {axis: n for axis, n in mesh.shape.items() if n > 1},
        "settings": dict(settings or {}),
        "hbm_limit_bytes": chip.hbm,
        "flops_per_device": flops,
        "int8_flops_per_device": int8,
        "model_flops_per_device": model_flops / mesh.size,
        "compile_seconds": seconds,
    }
    if sizes is None:
        return _too_large(used, held, common)
    total = sizes.total
    module = hlo.parse(text)
    moved = tally(module)
    saved = saved_activations(module) + device_bytes(activations)
    # The rounded-up rest: layouts are padded, so parts may add up to a little more than their sum.
    rest = max(total - held["weights"] - held["optimizer"] - saved, 0)
    time_ = estimate(
        chip, flops, moved.traffic, moved.collectives, common["model_flops_per_device"], int8
    )
    notes = []
    if int8:
        notes.append(
            "products of int8 operands are timed at the chip's int8 peak, all others at its bf16 "
            "peak, which the MFU is of"
        )
    if moved.unknown or counted.unknown:
        notes.append(
            "loops whose length depends on data count once: "
            f"{counted.unknown} with products, {moved.unknown} of the compiled program; blockwise "
            "attention is one, --attention xla counts all of it"
        )
    fits = total <= chip.hbm
    return Plan(
        **common,
        hbm_bytes_per_device=total,
        fits=fits,
        memory=Memory(**held, activations=saved, temporaries=rest),
        argument_bytes=sizes.argument,
        temp_bytes=sizes.temp,
        output_bytes=sizes.output,
        alias_bytes=sizes.alias,
        host_bytes=sizes.host,
        hbm_traffic_bytes_per_device=moved.traffic,
        collective_bytes=dict(sorted(moved.collectives.items())),
        seconds=dict(time_.terms),
        estimated_step_seconds=time_.seconds,
        bound_by=time_.bound_by,
        model_flops_utilisation=time_.utilisation,
        tokens_per_second=tokens / time_.seconds,
        notes=tuple(notes),
    )


def _too_large(used: int, held: Mapping[str, int], common: Mapping[str, Any]) -> Plan:
    """Of a program that the compiler finds no room for: it says how much it would take."""
    unknown = (
        "argument_bytes",
        "temp_bytes",
        "output_bytes",
        "alias_bytes",
        "hbm_traffic_bytes_per_device",
        "collective_bytes",
        "seconds",
        "estimated_step_seconds",
        "bound_by",
        "model_flops_utilisation",
        "tokens_per_second",
    )
    rest = max(used - sum(held.values()), 0)
    return Plan(
        **common,
        **dict.fromkeys(unknown),
        hbm_bytes_per_device=used,
        fits=False,
        memory=Memory(**held, activations=0, temporaries=rest),
        host_bytes=0,
        notes=("the compiler stopped for lack of memory; temporaries include activations",),
    )


_USED = re.compile(
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm|\(([\d.]+)([KMGT]?)\) exceeds available HBM"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_for(
    lowered: Any, platform: str, codegen: bool = True
) -> tuple[assigned.Sizes | None, str, int]:
    """Compiles for devices that may not be there.

    JAX's persistent cache is left alone: it can write such programs and not read them.

    Args:
      lowered: from `jax.stages.Traced.lower`.
      platform: "tpu", or another.
      codegen: see `plan_traced`.

    Returns:
      (what it takes, its optimised HLO, 0), or (None, "", bytes used) where it does not fit.
    """
    enabled = jax.config.jax_enable_compilation_cache
    with tempfile.TemporaryDirectory(prefix="fmjax-plan-", ignore_cleanup_errors=True) as directory:
        try:
            # Whether there is a cache is asked once, unless it is reset.
            jax.config.update("jax_enable_compilation_cache", False)
            compilation_cache.reset_cache()
            return _compile(lowered, platform, Path(directory), codegen)
        except jax.errors.JaxRuntimeError as e:
            if (found := _USED.search(str(e))) is None:
                raise
            number, unit = (part for part in found.groups() if part is not None)
            return None, "", int(float(number) * _UNITS[unit])
        finally:
            jax.config.update("jax_enable_compilation_cache", enabled)
            compilation_cache.reset_cache()


def _compile(
    lowered: Any, platform: str, directory: Path, codegen: bool
) -> tuple[assigned.Sizes, str, int]:
    if platform != "tpu":
        compiled = lowered.compile()
        return assigned.of(compiled), compiled.as_text(), 0
    # libtpu's HLO can be newer than what jaxlib reads; so libtpu prints it itself.
    options = {"xla_dump_to": str(directory), "xla_dump_hlo_as_text": True}
    if not codegen:
        compiled, sizes, text = assigned.before_codegen(
            lambda: lowered.compile(compiler_options=options), directory
        )
        if compiled is None:
            return sizes, text, 0
    else:
        compiled = lowered.compile(compiler_options=options)
    files = sorted(directory.glob("*after_optimizations.txt"))
    return assigned.of(compiled), files[-1].read_text(), 0


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of sharded `ShapeDtypeStruct`s in the memory of one device."""
    total = 0
    for x in jax.tree.leaves(tree):
        sharding = x.sharding
        if sharding is not None and sharding.memory_kind in HOST:
            continue
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        total += -(-math.prod(shape) * jax.dtypes.itemsize_bits(x.dtype) // 8)
    return total
