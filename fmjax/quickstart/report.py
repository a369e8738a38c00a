"""The quickstart's report: what was done, how well it went, and how to do more of it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax import report as html
from fmjax.cli.console import command_line, number
from fmjax.convert import open_directory
from fmjax.quickstart.plan import Plan, domains
from fmjax.quickstart.settings import Quickstart
from fmjax.quickstart.show import UNITS
from fmjax.recipes.training import METRICS

_STAGES = {
    "tokenizer": "Train a tokenizer",
    "train": "Pretrain",
    "finetune": "Adapt with LoRA",
    "eval": "Measure",
    "generate": "Generate",
    "merge": "Fold the adapter into the model",
}


def write_report(
    settings: Quickstart, now: Plan, again: Plan, stages: Mapping[str, Any], machine: str
) -> Path:
    """Writes `report.html` and returns its path.

    Args:
      settings: of the quickstart.
      now, again: what was run, and the larger commands to offer.
      stages: {name: {"seconds", "results"}} of every finished stage.
      machine: what it ran on, in words.
    """
    minutes, seconds = divmod(round(sum(s["seconds"] for s in stages.values())), 60)
    pretrained, adapted = (_log(p.out / METRICS) for p in (now.pretrain, now.adapt))
    path = settings.out / "report.html"
    page = html.page(
        "fmjax quickstart",
        f"A LLaMA-style model of {_parameters(now)} parameters, pretrained on the King James "
        f"Bible and adapted to movie reviews with LoRA, in {minutes} min {seconds:02d} s "
        f"on {machine}.",
        _perplexity(settings, stages["measure"]["results"]),
        html.section(
            "Loss",
            _chart(pretrained, "Pretraining on the King James Bible", "pretrain"),
            _chart(adapted, "Adaptation to movie reviews; only LoRA's matrices learn", "adapt"),
        ),
        _samples(stages["sample"]["results"]),
        _files(settings, now),
        _pytorch(now),
        _settings(settings, stages),
        html.section(
            "Every stage again, larger",
            html.note(
                "Each command does one stage of this run with eight times the parameters and "
                "eight times the text seen: minutes on an accelerator, hours on a CPU. Put files "
                "of your own (.txt or .jsonl) behind --data. A stopped command goes on when run "
                "again."
            ),
            *(
                html.code(command_line(name, options, wrap=True), _STAGES[name])
                for name, options in again.commands().items()
            ),
        ),
    )
    html.write(path, page)
    return path


def _parameters(now: Plan) -> str:
    """Counted from the headers of the exported weights."""
    total = sum(math.prod(t.shape) for t in open_directory(now.adapt.model).values())
    return f"{total / 1e6:.1f} million" if total >= 1e6 else number(total)


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _points(log: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    rows = [(row["step"], row[key]) for row in log if row.get(key) is not None]
    return [step for step, _ in rows], [value for _, value in rows]


def _chart(log: list[dict[str, Any]], caption: str, name: str) -> str:
    training, held_out = _points(log, "loss"), _points(log, "eval_loss")
    chart = html.line_chart(
        [
            html.Series("training", *training),
            html.Series("held-out", *held_out, dots=True),
        ],
        "step",
        "loss (nats per token)",
        name,
    )
    spoken = f"Training loss falls from {training[1][0]:.2f} to {training[1][-1]:.2f} nats"
    if held_out[1]:
        spoken += f"; held-out loss ends at {held_out[1][-1]:.2f}"
    return html.figure(chart, f"{caption}. {spoken}.", f"Line chart. {spoken}.")


def _perplexity(settings: Quickstart, results: Mapping[str, Any]) -> str:
    rows, best = [], {}
    for domain in domains(settings):
        for key, unit in UNITS:
            before, after = (results[when][domain.title][key] for when in ("before", "after"))
            best[len(rows)] = 1 if before <= after else 2
            rows.append(
                (
                    f"{domain.title}, {unit}",
                    _figure(before),
                    _figure(after),
                    f"{after / before - 1:+.0%}".replace("-", "−"),
                )
            )
    table = html.table(
        ("", "model", "with adapter", "change"),
        rows,
        "On held-out text; lower is better, and the better of the two is set strong. The numbers "
        "per word and per byte compare across tokenizers.",
        best,
    )
    _, second = domains(settings)
    before, after = (results[when][second.title]["per_token"] for when in ("before", "after"))
    summary = (
        f"The adapter takes the model's perplexity on {second.title} from {_figure(before)} to "
        f"{_figure(after)} per token; what it costs on the text of the pretraining, the first rows "
        "show. The model itself is unchanged: without the adapter it is as good as before."
    )
    return html.section("Perplexity", html.note(summary), table)


def _figure(x: float) -> str:
    return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _samples(results: Mapping[str, Any]) -> str:
    columns = [
        html.samples(title, [tuple(pair) for pair in results[when]])
        for when, title in (("before", "The model"), ("after", "With the adapter"))
    ]
    return html.section(
        "Samples",
        html.note("Both continue the same prompts with the same seed."),
        html.columns(*columns),
    )


def _files(settings: Quickstart, now: Plan) -> str:
    rows = (
        (str(now.tokenizer.out), "tokenizer: SentencePiece model and tokenizer.json"),
        (str(now.adapt.model), "model: safetensors, config, tokenizer"),
        (str(now.evaluate.adapter), "adapter, in PEFT's format"),
        (str(now.pretrain.out), "pretraining: checkpoints and metrics.jsonl"),
        (str(now.adapt.out), "adaptation: checkpoints and metrics.jsonl"),
        (str(settings.out / "quickstart.json"), "settings and results, as JSON"),
    )
    return html.section("Files", html.table(("path", "what it holds"), rows, "Where all lies."))


def _pytorch(now: Plan) -> str:
    snippet = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from peft import PeftModel\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{now.adapt.model}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{now.adapt.model}")\n'
        f'model = PeftModel.from_pretrained(model, "{now.evaluate.adapter}")'
    )
    return html.section("In PyTorch", html.code(snippet))


def _settings(settings: Quickstart, stages: Mapping[str, Any]) -> str:
    values = dataclasses.asdict(settings)
    hidden = ("out", "fresh", "tiny")
    rows = [
        (name.replace("_", " "), number(value))
        for name, value in values.items()
        if name not in hidden
    ]
    times = [(name, f"{stage['seconds']:.1f}") for name, stage in stages.items()]
    return html.section(
        "Settings and times",
        html.columns(
            html.table(("setting", "value"), rows, "Of this run."),
            html.table(("stage", "seconds"), times, "Compilation included."),
        ),
    )
