"""Methods of adaptation side by side: the same model, data and updates, one run each."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmjax import report as html
from fmjax.core import tree
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.run import TaskRun
from fmjax.recipes.training import METRICS

RESULT = "comparison.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the comparison.

    Attributes:
      method: its name.
      trained: share of the parameters that are trained, 0 to 1.
      memory: bytes of a step at its peak, as the compiler counts them: weights, optimizer state,
        batch and temporaries.
      speed: steps a second, the median over the run.
      metric: what is compared.
      value: of the metric, on the examples to measure on.
      interval: its 95 % bootstrap interval.
    """

    method: str
    trained: float
    memory: int
    speed: float
    metric: str
    value: float
    interval: tuple[float, float]


def compare(runs: Mapping[str, FinetuneTask], out: Path) -> list[Result] | None:
    """Runs all of them, one after the other, and writes the comparison.

    A run that is complete is not repeated: its line is kept in its directory.

    Args:
      runs: settings by the method's name.
      out: directory of comparison.md, .json, .html and picture.

    Returns:
      A line for each; None if a signal ended a run early.
    """
    results = []
    for name, settings in runs.items():
        file = settings.out / RESULT
        record = settings.record()
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if stored.get("settings") == record:
            stored = stored["result"]
            results.append(Result(**stored | {"interval": tuple(stored["interval"])}))
            continue
        print(f"— {name} —")
        result = _run(name, settings)
        if result is None:
            return None
        content = {"result": dataclasses.asdict(result), "settings": record}
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        results.append(result)
    write_comparison(results, out)
    return results


def _run(name: str, settings: FinetuneTask) -> Result | None:
    run = TaskRun.open(settings)
    trained = tree.count(run.step.split(run.state.variables)[0])
    share = trained / tree.count(run.adapted.variables["params"])
    memory = _peak(run)
    measured = run.run()
    if measured is None:
        return None
    metric = run.task.metric
    return Result(
        name,
        share,
        memory,
        _speed(settings),
        metric,
        measured.metrics[metric],
        measured.intervals[metric],
    )


def _peak(run: TaskRun) -> int:
    """Bytes of a step on the largest batch; what is donated counts once."""
    batch = max(run.held_out, key=lambda batch: batch["input_ids"].shape[-1])
    memory = run.step.lower(run.state, batch).compile().memory_analysis()
    kept = memory.argument_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.output_size_in_bytes + memory.temp_size_in_bytes


def _speed(settings: FinetuneTask) -> float:
    lines = (settings.out / METRICS).read_text(encoding="utf-8").splitlines()
    speeds = [json.loads(line).get("examples_per_second") for line in lines]
    return statistics.median(filter(None, speeds)) / settings.optimization.batch_size


def write_comparison(results: Sequence[Result], out: Path) -> None:
    """comparison.md, comparison.html and picture.png; prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    header, rows = ("method", "trained", "memory", "steps/s", results[0].metric, "95 %"), []
    for r in results:
        low, high = r.interval
        rows.append(
            (
                r.method,
                f"{r.trained:.2%}",
                f"{r.memory / 1e6:,.0f} MB",
                f"{r.speed:.2f}",
                f"{r.value:.3f}",
                f"{low:.3f} … {high:.3f}",
            )
        )
    lines = [header, ("---",) + ("---:",) * (len(header) - 1), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (out / "comparison.md").write_text(text + "\n", encoding="utf-8")
    (out / "comparison.json").write_text(
        json.dumps([dataclasses.asdict(r) for r in results], indent=2) + "\n", encoding="utf-8"
    )
    picture = html.bar_chart(
        [html.Bar(r.method, r.value, r.interval) for r in results], results[0].metric, "methods"
    )
    html.write_picture(out / "picture.png", picture)
    shown = ", ".join(f"{r.method} {r.value:.3f}" for r in results)
    page = html.page(
        "Methods of adaptation",
        "The same model, data and number of updates.",
        html.section(
            "Comparison",
            html.figure(picture, f"{results[0].metric} by method", f"Bars: {shown}."),
            html.table(header, rows, _CAPTION),
        ),
    )
    html.write(out / "comparison.html", page)
    print(text)
    print(f"table: {out / 'comparison.md'}, picture: {out / 'picture.png'}")


_CAPTION = (
    "Memory is the compiler's count of a step at its peak; intervals by drawing examples with "
    "replacement"
)


def variants(base: FinetuneTask, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The base's settings with each method's own.

    Args:
      base: whose `out` holds a directory for each method.
      methods: fields of `Adaptation` by the method's name, and `learning_rate`.
    """
    found = {}
    for name, fields in methods.items():
        rate = fields.get("learning_rate", 0.0)
        adaptation = {k: v for k, v in fields.items() if k != "learning_rate"}
        found[name] = dataclasses.replace(
            base,
            out=base.out / name,
            adaptation=dataclasses.replace(base.adaptation, **{"method": name, **adaptation}),
            optimization=dataclasses.replace(base.optimization, learning_rate=rate),
        )
    return found
