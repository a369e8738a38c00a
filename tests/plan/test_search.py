"""Ranking of many plans, without compiling any."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmjax.cli.main import main
from fmjax.core.errors import FmjaxError, ShardingError
from fmjax.nn.stack import REMAT
from fmjax.plan import Memory, Plan, parse
from fmjax.plan.search import Tried, search, to_json
from fmjax.recipes.plan import Case
from fmjax.recipes.plan_search import batches, groups, layouts

CASE = Case("llama-7b", "v5e:16", 32, 512)


def made(speed: float, used: int = 10, limit: int = 100) -> Plan:
    values: dict[str, Any] = dict.fromkeys(f.name for f in dataclasses.fields(Plan))
    values |= {
        "hbm_bytes_per_device": used,
        "hbm_limit_bytes": limit,
        "fits": used <= limit,
        "tokens_per_second": speed,
        "model_flops_utilisation": 0.5,
        "bound_by": "hbm",
        "memory": Memory(1, 2, 3, 4),
        "advice": ("--batch 8: fewer rows",),
    }
    return Plan(**values)


def test_the_first_of_a_group_that_fits_ends_it_and_the_fastest_is_first() -> None:
    plans = {"a": made(0, 200), "b": made(5), "c": made(9), "d": made(7)}
    told: list[Tried] = []
    ranked = search(
        [[(n, n) for n in "abc"], [("d", "d")], [("e", "e"), ("f", "f")]],
        lambda name: plans[name] if name in plans else refuse(name),
        told.append,
    )
    assert [t.name for t in told] == ["a", "b", "d", "e"]
    assert [t.name for t in ranked] == ["d", "b", "a", "e"]
    assert [t.fits for t in ranked] == [True, True, False, False]
    assert "does not fit" in ranked[2].line() and "refused, no e" in ranked[3].line()
    read = json.loads(to_json(ranked))
    assert [p["name"] for p in read["ranked"]] == ["d", "b", "a"]
    assert read["refused"] == {"e": "no e"}


def refuse(name: str) -> Plan:
    raise ShardingError(f"no {name}")


def test_where_no_layout_works_the_reason_is_said() -> None:
    with pytest.raises(FmjaxError, match="no layout works; the last said: no b"):
        search([[("a", "a")], [("b", "b")]], refuse)


def test_groups_go_from_the_fastest_to_the_smallest() -> None:
    found = list(groups(CASE, parse(CASE.topology)))
    for group in found:
        policies = [case.remat for _, case in group]
        # REMAT goes from the fastest to the one that takes least memory.
        assert policies == sorted(policies, key=list(REMAT).index)
        assert policies[0] == "none" and policies[-1] == "full"
        assert len({(case.mesh, case.rules, case.batch) for _, case in group}) == 1
    names = [name for group in found for name, _ in group]
    assert len(names) == len(set(names))


def test_decoding_is_not_tried_with_recomputation() -> None:
    found = list(groups(dataclasses.replace(CASE, decode=True), parse(CASE.topology)))
    assert all(len(group) == 1 and "remat" not in group[0][0] for group in found)


def test_what_is_asked_for_is_kept() -> None:
    assert layouts(CASE, 16)[0] == ("fsdp=16", "fsdp_tensor")
    assert layouts(CASE, 1) == [("", "")]
    assert layouts(dataclasses.replace(CASE, mesh="fsdp=4,tensor=4"), 16) == [
        ("fsdp=4,tensor=4", "")
    ]
    assert batches(32, 16) == [32, 64, 16]
    assert batches(16, 16) == [16, 32]
    assert batches(3, 2) == [6]


@pytest.mark.parametrize("used", [10, 1000])
def test_the_command_lists_the_best_first(
    used: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked = [Tried("fsdp=8", made(9, used)), Tried("ddp", None, "too many heads")]

    def search_cases(case: Case, report: Callable[[Tried], None]) -> list[Tried]:
        assert (case.topology, case.batch) == ("v5e:8", 16)
        for tried in reversed(ranked):
            report(tried)
        return ranked

    monkeypatch.setattr("fmjax.recipes.plan.search_cases", search_cases)
    monkeypatch.setattr(Plan, "__str__", lambda plan: "the whole plan")
    file = tmp_path / "search.json"
    line = "plan --model gpt2 --topology v5e:8 --batch 16 --sequence-length 128 --search --json"
    assert main([*line.split(), str(file)]) == 0
    out = capsys.readouterr().out
    assert out.index("ddp: refused") < out.index("best first:") < out.rindex("fsdp=8: ")
    assert ("the whole plan" in out) is (used == 10)
    assert ("nothing fits" in out and "--batch 8: fewer rows" in out) is (used == 1000)
    assert [p["name"] for p in json.loads(file.read_text())["ranked"]] == ["fsdp=8"]


def test_a_file_that_cannot_be_written_is_told_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "plan --model gpt2 --topology v5e:8 --batch 16 --seq 128 --json"
    assert main([*line.split(), str(tmp_path / "none" / "plan.json")]) == 2
    assert "there is no such directory; make it first" in capsys.readouterr().err
