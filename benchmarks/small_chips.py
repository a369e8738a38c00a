"""What fits on the few chips that most people have, and how fast it could be there.

    pip install libtpu "jax[cuda12]"
    python benchmarks/small_chips.py

LLaMA models of 1 to 8 billion parameters on one v5e (Colab), eight of them, and one H100: training
of all weights (float32 master weights and AdamW moments), LoRA and QLoRA (rank 16, all linear
layers), bfloat16 computation, packed rows of 2048 tokens, full rematerialisation. Of 8, 4, 2 and 1
rows a chip the most that fit are taken. Each step is compiled for chips that are not there; nothing
is allocated. Tokens/s and MFU are the roofline's, a bound and not a promise:

    time = max(matmul FLOPs / peak, HBM bytes / bandwidth, received bytes / interconnect)
    MFU = model FLOPs / (time · peak), model FLOPs = 6 N + 4 N_frozen + 6 L T A a token

Some rows alone: --chips v5e:1 --models llama3.2-1b --methods lora
"""

import argparse

from fmjax.plan.environment import prepare

prepare()

from fmjax.plan import describe, parse  # noqa: E402
from fmjax.plan.engine import device_bytes  # noqa: E402
from fmjax.plan.result import gib  # noqa: E402
from fmjax.recipes.layout import named  # noqa: E402
from fmjax.recipes.options import Adaptation  # noqa: E402
from fmjax.recipes.plan import Case, build, config_of, plan_case  # noqa: E402

CHIPS = ("v5e:1", "v5e:8", "h100:1")
MODELS = ("llama3.2-1b", "llama3.2-3b", "llama3.1-8b")
METHODS = ("full", "lora", "qlora")
ROWS = (8, 4, 2, 1)
SEQ = 2048


def line(chips: str, model: str, method: str, attention: str) -> str:
    """A row of the table."""
    topology = parse(chips)
    devices = describe(topology)
    rank = {} if method == "full" else {"rank": 16}
    held = 0
    for rows in ROWS:
        batch = rows * topology.count
        mesh = f"fsdp={topology.count}"
        adaptation = Adaptation(method=method, **rank)
        case = Case(
            model, chips, batch, SEQ, adaptation, attention=attention, mesh=mesh, rules="fsdp"
        )
        if not held:
            step, variables, _ = build(case, config_of(case), *named(mesh, "fsdp", devices))
            state = step.abstract_state(variables)
            held = device_bytes((state.variables, state.opt_state))
        if held > topology.chip.hbm:
            break
        plan = plan_case(case, devices)
        if plan.fits:
            return (
                f"| {chips} | {model} | {method} | {rows} × {SEQ} | "
                f"{gib(plan.hbm_bytes_per_device)} of {gib(plan.hbm_limit_bytes)} | "
                f"{plan.tokens_per_second / topology.count:,.0f} | "
                f"{plan.model_flops_utilisation:.0%} | {plan.bound_by} |"
            )
    return f"| {chips} | {model} | {method} | – | does not fit, {gib(held)} at rest | | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=CHIPS)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--attention", default="auto")
    args = parser.parse_args()
    print("| chips | model | method | batch a chip | memory | tokens/s a chip | MFU | bound by |")
    print("|---|---|---|---|---|---:|---:|---|", flush=True)
    for chips in args.chips:
        for model in args.models:
            for method in args.methods:
                print(line(chips, model, method, args.attention), flush=True)


if __name__ == "__main__":
    main()
