"""What the quickstart says at the terminal."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmjax.quickstart.plan import Domain, Plan
from fmjax.quickstart.settings import Quickstart

UNITS = (
    ("per_token", "perplexity per token"),
    ("per_word", "perplexity per word"),
    ("bits_per_byte", "bits per byte"),
)


def console() -> Console:
    """Standard output as it is now; tests and notebooks replace it."""
    return Console(highlight=False, soft_wrap=True)


def opening(settings: Quickstart) -> None:
    console().print(
        f"[bold]fmjax quickstart[/]: a small language model, from raw text to shipped files, in "
        f"{escape(str(settings.out))}"
    )


def stage(number: int, total: int, name: str, settings: Quickstart, now: Plan) -> None:
    """Says what comes now and where its files will lie."""
    text = {
        "tokenizer": f"train a SentencePiece tokenizer of {settings.vocab_size} ids on the King "
        f"James Bible and movie reviews → {now.tokenizer.out}",
        "pretrain": f"pretrain a {settings.layers}-layer LLaMA-style model on the King James "
        f"Bible, {settings.steps} steps → {now.adapt.model}",
        "adapt": f"adapt it to movie reviews with LoRA of rank {settings.rank}, "
        f"{settings.adapt_steps} steps; the model itself stays as it is → {now.evaluate.adapter}",
        "measure": "measure both on held-out text of both kinds",
        "sample": "let both continue the same prompts",
        "report": f"write the report → {settings.out / 'report.html'}",
    }[name]
    console().print(f"\n[bold cyan]{number}/{total} {name}[/]: {escape(text)}")


def finished() -> None:
    console().print("[dim]finished in an earlier run; --fresh starts over[/]")


def again(command: str) -> None:
    console().print("[dim]again, larger:[/]")
    console().print(command, markup=False, style="green")


def perplexity(domains: tuple[Domain, ...], results: dict[str, Any]) -> None:
    """The table of both models on both texts."""
    table = Table("held-out text", "unit", title="lower is better")
    table.add_column("model", justify="right")
    table.add_column("with adapter", justify="right")
    for domain in domains:
        for key, unit in UNITS:
            before, after = (results[when][domain.title][key] for when in ("before", "after"))
            table.add_row(domain.title, unit, f"{before:,.2f}", f"{after:,.2f}")
    console().print(table)


def samples(results: dict[str, Any]) -> None:
    """The continuations of both models."""
    for when, title in (("before", "the model"), ("after", "with the adapter")):
        console().print(f"[bold]{title}[/]")
        for prompt, text in results[when]:
            shown = " ".join((prompt + text).split())
            console().print(f"  · {shown}", markup=False)


def closing(settings: Quickstart, now: Plan, report: Any, seconds: float) -> None:
    """Where everything lies."""
    minutes, rest = divmod(round(seconds), 60)
    console().print(f"\n[bold]done in {minutes} min {rest:02d} s[/]")
    places = {
        "report": f"{report}",
        "model": f"{now.adapt.model}  (transformers: AutoModelForCausalLM.from_pretrained)",
        "adapter": f"{now.evaluate.adapter}  (peft: PeftModel.from_pretrained)",
        "tokenizer": f"{now.tokenizer.out}",
        "everything": f"{settings.out}",
    }
    for what, where in places.items():
        console().print(f"  {what:11} {where}", markup=False)
