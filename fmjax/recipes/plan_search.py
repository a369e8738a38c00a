"""What `fmjax plan --search` tries."""

import dataclasses
from collections.abc import Iterator

from fmjax.plan import Topology
from fmjax.recipes.plan import Case

# From the fastest to the one that takes least memory.
POLICIES = ("none", "minimal", "attention", "qkv", "full")


def groups(case: Case, topology: Topology) -> Iterator[list[tuple[str, Case]]]:
    """Layouts × batches, each a list of policies that ends with the one that takes least memory.

    What the case sets itself (a mesh, rules) is kept.
    """
    # Decoding recomputes nothing.
    policies = (case.remat,) if case.decode else POLICIES
    for mesh, rules in layouts(case, topology.count):
        for batch in batches(case.batch, topology.count):
            changed = dataclasses.replace(case, mesh=mesh, rules=rules, batch=batch)
            name = ", ".join(filter(None, [mesh, rules, f"batch {batch}"]))
            yield [
                (
                    name if case.decode else f"{name}, remat {remat}",
                    dataclasses.replace(changed, remat=remat),
                )
                for remat in policies
            ]


def layouts(case: Case, chips: int) -> list[tuple[str, str]]:
    """(mesh, rules): all chips on fsdp, some of them on tensor, and every chip with all weights."""
    if case.mesh or case.rules or chips == 1:
        return [(case.mesh, case.rules)]
    meshes = [f"fsdp={chips}"]
    meshes += [f"fsdp={chips // n},tensor={n}" for n in (2, 4, 8) if chips % n == 0 and n < chips]
    return [*((mesh, "fsdp_tensor") for mesh in meshes), (f"data={chips}", "ddp")]


def batches(batch: int, chips: int) -> list[int]:
    """The batch, twice and half of it, as far as they give every chip the same rows."""
    return [n for n in (batch, 2 * batch, batch // 2) if n and n % chips == 0] or [batch]
