"""The page that a run on images ends with: its figures, and pictures of what was learnt."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fmjax import report
from fmjax.evals import nearest, reconstruction
from fmjax.recipes.vision.measuring import Measure
from fmjax.recipes.vision.pictures import neighbours_section, reconstruction_section
from fmjax.train import TrainState

SHOWN = 8
# With the query a row of the page.
NEAREST = 4
_MEASURED = ("eval_knn", "eval_image_to", "eval_text_to", "eval_accuracy", "eval_top5")


def write_report(
    out: Path,
    log: Path,
    title: str,
    lead: str,
    lines: Sequence[str],
    measure: Measure,
    state: TrainState,
) -> Path:
    """Writes `report.html` into the run's directory and returns its path.

    Args:
      out: the directory.
      log: the run's metrics, JSON lines.
      title, lead: of the page.
      lines: the last figures, in words.
      measure: of the run, with its model and pictures.
      state: the last.

    A run of several processes, none of which has all pictures, has its figures alone.
    """
    sections = [report.section("Figures", *map(report.note, lines), *_curves(log))]
    raw = _some(measure.pictures.held_out, SHOWN) if jax.process_count() == 1 else {}
    if raw and measure.learner.reconstructs:
        sections.append(_filled_in(measure, state, raw))
    if raw and measure.votes:
        sections.append(_neighbours(measure, state, raw))
    if raw and measure.retrieves:
        sections.append(_found(measure, state))
    path = out / "report.html"
    report.write(path, report.page(title, lead, *sections))
    return path


def _curves(log: Path) -> list[str]:
    """The loss, and what was measured along the way."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figures = []
    loss = [
        report.Series(label, *_series(rows, name), dots)
        for name, label, dots in (("loss", "training", False), ("eval_loss", "held out", True))
    ]
    figures.append(
        report.figure(report.line_chart(loss, "step", "loss", "loss"), "Loss", "The loss by step.")
    )
    names = sorted({name for row in rows for name in row if name.startswith(_MEASURED)})
    lines = [
        report.Series(n.removeprefix("eval_").replace("_", " "), *_series(rows, n), True)
        for n in names
        if not n.endswith(("@1", "@5"))
    ]
    if lines:
        chart = report.line_chart(lines, "step", "share that is right", "measured")
        figures.append(report.figure(chart, "On held-out pictures", "What was measured, by step."))
    return figures


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _some(batches: Any, count: int) -> dict[str, np.ndarray]:
    """Real rows of held-out pictures, from all over the first batch; {} where there is none.

    Pictures that lie together are often of one kind.
    """
    batch = next(iter(batches))
    real = np.flatnonzero(np.asarray(batch["example_weight"]) > 0)
    real = real[np.linspace(0, len(real) - 1, min(count, len(real))).round().astype(int)]
    return {name: np.asarray(x)[real] for name, x in batch.items()} if len(real) else {}


def _shown(measure: Measure, raw: Mapping[str, Any]) -> list[np.ndarray]:
    """u8[H, W, 3] each, as the model sees them, enlarged where they are very small."""
    pixels = np.asarray(jax.jit(measure.pictures.unscaled)(dict(raw))["pixel_values"])
    images = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    scale = max(1, 64 // max(images.shape[1:3]))
    return list(images.repeat(scale, 1).repeat(scale, 2))


def _neighbours(measure: Measure, state: TrainState, raw: Mapping[str, Any]) -> str:
    bank, shown = measure.compared(state, raw)
    found = nearest(shown, bank, min(NEAREST, len(bank)))
    wanted, places = np.unique(found.indices, return_inverse=True)
    rows = _rows(measure.pictures.bank, wanted)
    return neighbours_section(
        _shown(measure, raw),
        _shown(measure, rows),
        found._replace(indices=places.reshape(found.indices.shape)),
        list(raw["labels"]),
        list(rows["labels"]),
        measure.pictures.classes,
    )


def _rows(batches: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Those of the real rows of all batches, in order."""
    parts, start = [], 0
    for batch in batches:
        real = np.flatnonzero(np.asarray(batch["example_weight"]) > 0)
        here = real[indices[(indices >= start) & (indices < start + len(real))] - start]
        parts.append({name: np.asarray(x)[here] for name, x in batch.items()})
        start += len(real)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _filled_in(measure: Measure, state: TrainState, raw: Mapping[str, Any]) -> str:
    learner, whole = measure.learner, measure.pictures.whole
    pixels = jax.jit(whole)(dict(raw))["pixel_values"]
    config = learner.module.config

    @jax.jit
    def predict(variables: Any, pixels: jax.Array) -> Any:
        return learner.module.apply(
            variables, pixel_values=pixels, rngs={"mask": jax.random.key(0)}
        )

    output = predict(state.variables, pixels)
    made = reconstruction(
        pixels,
        output.logits,
        output.mask,
        config.patch,
        normalized=learner.objective.norm_pix_loss,
        mean=whole.mean,
        std=whole.std,
    )
    scale = max(1, 64 // pixels.shape[1])
    return reconstruction_section(type(made)(*(x.repeat(scale, 1).repeat(scale, 2) for x in made)))


def _found(measure: Measure, state: TrainState) -> str:
    """The pictures that captions find among all held-out ones."""
    images, texts = measure.embeddings(state)
    asked = np.linspace(0, len(texts) - 1, min(SHOWN, len(texts))).astype(int)
    best = nearest(texts[asked], images, min(NEAREST, len(images)))
    wanted = np.unique(np.concatenate([asked, best.indices.ravel()]))
    rows = _rows(measure.pictures.held_out, wanted)
    pictures = dict(zip(wanted, _shown(measure, rows), strict=True))
    captions = dict(zip(wanted, map(measure.pictures.words, rows["input_ids"]), strict=True))
    sheet = []
    for q, cosines, indices in zip(asked, *best, strict=True):
        row = [report.Tile(pictures[q], captions[q], "query")]
        for cosine, i in zip(cosines, indices, strict=True):
            row.append(report.Tile(pictures[i], f"{cosine:.3f}", "" if i == q else "wrong"))
        sheet.append(row)
    note = report.note(
        "The first picture of a row is the one that its caption is of; then those nearest to the "
        "caption, others than it faded."
    )
    return report.section("What captions find", note, report.sheet(sheet))
