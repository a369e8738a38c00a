"""Many plans, ranked: which layout, recomputation and batch make the most of some chips."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fmjax.core.errors import FmjaxError, ShardingError
from fmjax.plan.result import Plan, gib


@dataclasses.dataclass(frozen=True)
class Tried:
    """One candidate and what became of it.

    Attributes:
      name: what tells it from the others.
      plan: None where the layout does not work for the model.
      refused: why not.
    """

    name: str
    plan: Plan | None
    refused: str = ""

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.fits

    def line(self) -> str:
        """One row for the eye."""
        if self.plan is None:
            return f"{self.name}: refused, {self.refused}"
        used = f"{gib(self.plan.hbm_bytes_per_device)} of {gib(self.plan.hbm_limit_bytes)}"
        if not self.plan.fits:
            return f"{self.name}: {used}, does not fit"
        return (
            f"{self.name}: {used}, {self.plan.tokens_per_second:,.0f} tokens/s at most, "
            f"MFU {self.plan.model_flops_utilisation:.1%}, bound by {self.plan.bound_by}"
        )


def search(
    groups: Iterable[Sequence[tuple[str, Any]]],
    plan: Callable[[Any], Plan],
    report: Callable[[Tried], None] = lambda tried: None,
) -> list[Tried]:
    """Plans candidates and ranks them by estimated tokens/s, those that do not fit last.

    Args:
      groups: of (name, candidate), each from the fastest to the one that takes least memory. The
        first of a group that fits ends it: those behind it only recompute more.
      plan: plans a candidate; a `ShardingError` says that it cannot be laid out.
      report: is told of each candidate as it is done.

    Raises:
      FmjaxError: what is wrong with every candidate alike.
    """
    found: list[Tried] = []
    for group in groups:
        for name, candidate in group:
            try:
                tried = Tried(name, plan(candidate))
            except ShardingError as e:
                tried = Tried(name, None, str(e))
            found.append(tried)
            report(tried)
            if tried.fits or tried.plan is None:
                break
    if found and all(tried.plan is None for tried in found):
        raise FmjaxError(f"no layout works; the last said: {found[-1].refused}")
    return sorted(found, key=_rank)


def _rank(tried: Tried) -> tuple[int, float]:
    if tried.plan is None:
        return 2, 0.0
    if not tried.plan.fits:
        return 1, tried.plan.hbm_bytes_per_device
    return 0, -tried.plan.tokens_per_second


def to_json(ranked: Sequence[Tried]) -> str:
    """All plans in their order, and what was refused."""
    plans = [dataclasses.asdict(t.plan) | {"name": t.name} for t in ranked if t.plan is not None]
    refused = {t.name: t.refused for t in ranked if t.plan is None}
    return json.dumps({"ranked": plans, "refused": refused}, indent=2, ensure_ascii=False) + "\n"
