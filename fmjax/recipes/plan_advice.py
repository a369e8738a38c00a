"""What would make a planned step smaller."""

from typing import Any

from fmjax.plan import Plan


def advice(case: Any, result: Plan) -> tuple[str, ...]:
    """What would make a step smaller, the cheapest first.

    Args:
      case: that does not fit, see `fmjax.recipes.plan.Case`.
      result: its plan.
    """
    found = _of_decoding(case) if case.decode else _of_training(case, result)
    if result.devices > 1 and case.rules.startswith("ddp"):
        found.append("--rules fsdp_tensor: split weights and optimizer state over the chips")
    found.append("--topology: more chips, or chips with more memory")
    return tuple(found)


def _of_decoding(case: Any) -> list[str]:
    found = []
    if case.batch > 1:
        found.append(f"--batch {case.batch // 2}: fewer rows, each with a cache")
    if case.seq > 1024:
        found.append(f"--seq {case.seq // 2}: shorter caches")
    if case.adaptation.precision == "none":
        found.append("--quantize nf4: weights in 4 bits, or int8 in 8")
    return found


def _of_training(case: Any, result: Plan) -> list[str]:
    a, chips, parts = case.adaptation, result.devices, case.optimization.accumulate
    held = result.memory.weights + result.memory.optimizer
    crowded = held > result.hbm_limit_bytes / 2
    found = []
    if case.remat not in ("full", "offload"):
        found.append("--remat full: keep only the layers' inputs, for a third more arithmetic")
    elif case.remat == "full":
        found.append("--remat offload: keep the layers' inputs in the host's memory")
    if case.batch >= 2 * chips * parts:
        found.append(f"--accumulate {2 * parts}: the same batch in {2 * parts} parts")
        found.append(f"--batch {case.batch // 2}: fewer rows")
    elif case.seq > 1024:
        found.append(f"--seq {case.seq // 2}: shorter rows")
    if crowded and a.method == "full" and a.moments == "float32":
        found.append("--moments bfloat16, or int8: smaller optimizer state")
    if crowded and a.method == "full" and case.offload == "none":
        found.append("--offload optimizer: its state in the host's memory, at the cost of copies")
    if crowded and a.method == "full":
        found.append("--method lora: train little beside frozen weights")
    elif crowded and a.precision == "none":
        found.append("--method qlora: frozen weights in 4 bits")
    return found
