"""`fmjax extract`."""

import dataclasses
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Extract:
    """Make a LoRA adapter of the difference between a model and a fine-tuned copy of it.

    Each matrix gets the change of its rank that is nearest to the real one. How much every rank
    misses is printed, and what is no matrix and is not copied: it is lost.

    Attributes:
      base: Directory of the base model.
      tuned: Directory of the fine-tuned model, of the same architecture.
      out: Directory of the adapter to write, in PEFT's format.
      rank: Of every matrix; with --energy, at most.
      energy: Share of the squared change that each matrix keeps, such as 0.9; its rank follows.
      targets: Layers to decompose: names such as q_proj v_proj, or all-linear.
      modules_to_save: Modules to copy whole: heads, norms, embeddings.
      bias: Biases to copy: all, or those of the decomposed layers.
      chart: File to write the error by rank to: an HTML page, or a picture if it ends in .png.
    """

    base: Path
    tuned: Path
    out: Path
    rank: int | None = None
    energy: float | None = None
    targets: tuple[str, ...] = ("all-linear",)
    modules_to_save: tuple[str, ...] = ()
    bias: Literal["none", "all", "lora_only"] = "none"
    chart: Path | None = None

    def run(self) -> None:
        import fmjax
        from fmjax import peft

        model, base = fmjax.from_pretrained(self.base)
        tuned_model, tuned = fmjax.from_pretrained(self.tuned)
        self._check(model, tuned_model)
        spec, adapter, report = peft.extract(
            model,
            base,
            tuned,
            rank=16 if self.rank is None and self.energy is None else self.rank,
            energy=self.energy,
            targets=self.targets[0] if self.targets == ("all-linear",) else self.targets,
            modules_to_save=self.modules_to_save,
            bias=self.bias,
        )
        peft.save(self.out, spec, adapter, model, base=str(self.base), params=base)
        if self.chart is not None:
            self._draw(report)
        print(report)
        print(f"{self.out}: {self.tuned} − {self.base}, {peft.count(spec, model):,} parameters")

    def _check(self, model: Any, tuned: Any) -> None:
        from fmjax.core.errors import ConfigError

        kinds = [f"{m.config.model_type} with head {m.config.head}" for m in (model, tuned)]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"{self.base} is {kinds[0]} and {self.tuned} is {kinds[1]}; an adapter needs two "
                "models of one architecture"
            )

    def _draw(self, report: Any) -> None:
        from fmjax import report as html

        errors = [report.error(rank) for rank in report.ranks]
        series = html.Series("relative error", report.ranks, errors, dots=True)
        picture = html.line_chart([series], "rank", "error of the change", "error-by-rank")
        if self.chart.suffix == ".png":
            html.write_picture(self.chart, picture)
            return
        rows = [[str(r), f"{e:.4f}"] for r, e in zip(report.ranks, errors, strict=True)]
        shown = html.section(
            "Error by rank",
            html.figure(picture, "What an adapter of each rank misses.", "It falls with the rank."),
            html.table(["rank", "error"], rows, "‖ΔW − its approximation‖ / ‖ΔW‖, all matrices"),
            html.code(str(report)),
        )
        html.write(self.chart, html.page("Extracted adapter", f"{self.tuned} − {self.base}", shown))
