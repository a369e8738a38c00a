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
from collections.abc import Callable

from fmjax.plan import Plan, parse
from fmjax.plan.result import gib
from fmjax.recipes.options import Adaptation
from fmjax.recipes.plan_apart import plan_apart
from fmjax.recipes.plan_cases import Case

CHIPS = ("v5e:1", "v5e:8", "h100:1")
MODELS = ("llama3.2-1b", "llama3.2-3b", "llama3.1-8b")
METHODS = ("full", "lora", "qlora")
ROWS = (8, 4, 2, 1)
SEQ = 2048


def largest(case_of: Callable[[int], Case]) -> tuple[int, Plan]:
    """(rows a chip, plan) of the most rows that fit; (0, the plan of fewest rows) if none do."""
    best, left = (0, plan := plan_apart(case_of(ROWS[0]))), list(ROWS[1:])
    if plan.fits:
        return ROWS[0], plan
    held = plan.memory.weights + plan.memory.optimizer
    while left and held < plan.hbm_limit_bytes:
        # Too many, few enough: the upper half of what is left, or the lower.
        rows = left[len(left) // 2]
        plan = plan_apart(case_of(rows))
        larger, smaller = [n for n in left if n > rows], [n for n in left if n < rows]
        left = larger if plan.fits else smaller
        if plan.fits or not best[0]:
            best = (rows if plan.fits else 0, plan)
    return best


def line(chips: str, model: str, method: str, attention: str) -> str:
    """A row of the table."""
    topology = parse(chips)
    adaptation = Adaptation(method=method, **({} if method == "full" else {"rank": 16}))

    def case_of(rows: int) -> Case:
        mesh = f"fsdp={topology.count}"
        batch = rows * topology.count
        return Case(
            model, chips, batch, SEQ, adaptation, attention=attention, mesh=mesh, rules="fsdp"
        )

    rows, plan = largest(case_of)
    memory = f"{gib(plan.hbm_bytes_per_device)} of {gib(plan.hbm_limit_bytes)}"
    if not rows:
        held = gib(plan.memory.weights + plan.memory.optimizer)
        return f"| {chips} | {model} | {method} | none fits | {memory}, {held} at rest | | | |"
    return (
        f"| {chips} | {model} | {method} | {rows} × {SEQ} | {memory} | "
        f"{plan.tokens_per_second / topology.count:,.0f} | "
        f"{plan.model_flops_utilisation:.0%} | {plan.bound_by} |"
    )


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
