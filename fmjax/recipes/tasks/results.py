"""What a fine-tuning run shows at its end: figures, pictures, and what to do next."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from fmjax import report as html
from fmjax.recipes.tasks.finetune import FinetuneTask
from fmjax.recipes.tasks.task import Measured
from fmjax.recipes.training import METRICS
from fmjax.train import Outcome

TITLES = {
    "classification": "Classification",
    "tagging": "Tagging",
    "qa": "Question answering",
    "embedding": "Sentence embeddings",
}


def write_results(
    settings: FinetuneTask,
    measured: Measured,
    metric: str,
    outcome: Outcome,
    trained: str,
    notes: list[str],
) -> None:
    """metrics.json, report.html and pictures in the run's directory, and the same in short.

    Args:
      settings: of the run.
      measured: of the best state.
      metric: that it was chosen by.
      outcome: of the training.
      trained: how many parameters were, in words.
      notes: on the data.
    """
    out = Path(settings.out)
    content = {
        "task": settings.task,
        "best_step": outcome.best_step,
        **to_json(measured),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (out / "metrics.json").write_text(text, encoding="utf-8")
    pictures = [out / (f"picture_{i}.png" if i else "picture.png")
                for i in range(len(measured.pictures))]  # fmt: skip
    for path, shown in zip(pictures, measured.pictures, strict=True):
        html.write_picture(path, shown.picture)
    html.write(out / "report.html", _page(settings, measured, metric, outcome, trained, notes))
    print_figures(f"{settings.task}, {when_kept(outcome)}", measured)
    shown = ", ".join(map(str, (out / "report.html", *pictures)))
    print(f"figures: {out / 'metrics.json'}, pictures: {shown}")
    if settings.adaptation.method != "full":
        print(f"adapter: {out / 'adapter'}")
    print(f"model: {out / 'model'}")
    print("next:", *_next(settings))


def to_json(measured: Measured) -> dict[str, Any]:
    """Figures and intervals; those that are not finite are null, as JSON has no nan."""
    return {
        "metrics": {name: _finite(value) for name, value in measured.metrics.items()},
        "intervals": {
            name: [_finite(value) for value in pair] for name, pair in measured.intervals.items()
        },
    }


def print_figures(title: str, measured: Measured) -> None:
    """A table on the terminal, without the figures of single labels."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", title=title)
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, *rest in _rows(measured):
        if "/" not in name:
            table.add_row(name, *rest)
    Console().print(table)


def when_kept(outcome: Outcome) -> str:
    """Which state was measured; no best one without a finite evaluation."""
    if outcome.best_step is None:
        return f"after step {outcome.step}"
    return f"best after step {outcome.best_step}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(measured: Measured) -> list[tuple[str, str, str]]:
    """(name, value, interval) of the figures, those of single labels last."""
    ordered = sorted(measured.metrics, key=lambda name: "/" in name)
    rows = []
    for name in ordered:
        value, pair = measured.metrics[name], measured.intervals.get(name)
        shown = f"{value:,.0f}" if name.startswith("support/") else f"{value:.4f}"
        rows.append((name, shown, f"{pair[0]:.4f} … {pair[1]:.4f}" if pair else ""))
    return rows


def _page(
    settings: FinetuneTask,
    measured: Measured,
    metric: str,
    outcome: Outcome,
    trained: str,
    notes: list[str],
) -> str:
    chosen = f"{metric} {measured.metrics[metric]:.4f}"
    if metric in measured.intervals:
        low, high = measured.intervals[metric]
        chosen += f" ({low:.4f} … {high:.4f})"
    rows = [(name.replace("/", " of "), *rest) for name, *rest in _rows(measured)]
    return html.page(
        f"{TITLES[settings.task]}: {Path(settings.model).name}",
        f"{chosen} on the examples to measure on, {trained}, {when_kept(outcome)}.",
        html.section(
            "Answers",
            *(html.figure(s.picture, s.title, s.alternative) for s in measured.pictures),
            html.table(
                ("figure", "value", "95 % interval"),
                rows,
                "On the examples to measure on; intervals by drawing examples with replacement",
            ),
        ),
        html.section("Training", *_curves(Path(settings.out) / METRICS, metric)),
        html.section("Data", *(html.note(note) for note in notes)),
        html.section("Use it", html.code("\n".join(_next(settings)))),
    )


def _curves(log: Path, metric: str) -> list[str]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    def series(name: str, label: str, dots: bool) -> html.Series:
        points = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
        return html.Series(label, *(zip(*points, strict=True) if points else ((), ())), dots=dots)

    loss = html.line_chart(
        [series("loss", "training", False), series("eval_loss", "measured", True)],
        "step",
        "loss",
        "loss",
    )
    curve = html.line_chart([series(f"eval_{metric}", metric, True)], "step", metric, "metric")
    return [
        html.figure(loss, "Loss", "Loss by step, in training and as measured."),
        html.figure(curve, metric, f"{metric} by step."),
    ]


def _next(settings: FinetuneTask) -> list[str]:
    """Commands that use what was made."""
    model = f"--model {settings.out / 'model'}"
    if settings.adaptation.positions:  # virtual tokens are in the adapter alone
        model += f" --adapter {settings.out / 'adapter'}"
    if settings.task == "embedding":
        return [f"fmjax embed {model} --input FILE --output vectors.npy"]
    return [f"fmjax predict {model} --input FILE"]
