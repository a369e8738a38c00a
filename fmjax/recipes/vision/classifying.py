"""What images show: by a classifier's head, or by texts."""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from fmjax import report
from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import TEMPLATES, class_embeddings, mean_figure, zero_shot_probabilities
from fmjax.recipes import vector_files
from fmjax.recipes.vision.classify import Classify
from fmjax.recipes.vision.encoder import CLASSIFIER, Encoder, image_vectors, open_encoder
from fmjax.recipes.vision.reading import find_images, plain, read_image, report_unreadable

_SHOWN = 12
"""Images of a label on the page."""


def classify(settings: Classify) -> None:
    """Reads, classifies and writes; see `Classify`.

    Raises:
      FmjaxError: what cannot be read or used; found before anything is written.
    """
    if settings.top < 1:
        raise ConfigError(f"--top {settings.top} must be at least 1")
    vector_files.check_place("--output", settings.output)
    vector_files.check_place("--html", settings.html)
    files = find_images(settings.images)
    encoder = open_encoder(
        settings.model,
        mesh=settings.mesh,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        classifier=True,
    )
    names, numbers, unreadable, shares = _shares(encoder, settings, files)
    files = [files[i] for i in numbers]
    figure = _accuracy(names, files, shares, settings.images) if settings.measure else None
    lines = "".join(f"{plain(json.dumps(row, ensure_ascii=False))}\n" for row in
                    _rows(names, files, shares, settings.top))  # fmt: skip
    if settings.output is None:
        sys.stdout.write(lines)
    else:
        vector_files.replace(settings.output, lambda file: file.write(lines.encode()))
    if settings.html is not None:
        report.write(settings.html, _page(names, files, shares, figure))
    report_unreadable(unreadable)
    if figure is not None:
        print(f"accuracy {figure} of {len(files):,} images", file=sys.stderr)


def _shares(
    encoder: Encoder, settings: Classify, files: Sequence[Path]
) -> tuple[list[str], list[int], dict[Path, str], np.ndarray]:
    """(labels, numbers of the files read, reasons of the others, f[read, labels] scores)."""
    config = encoder.model.config
    if config.head == CLASSIFIER:
        if settings.labels or settings.templates:
            raise ConfigError(
                "--labels and --templates are for models of images and texts; this classifier has "
                f"labels of its own ({', '.join(config.id2label[:5])}, …)"
            )
        if config.problem_type == "regression":
            raise ConfigError(
                f"--model {settings.model} answers with numbers (problem_type regression), not "
                "with labels; give a classifier"
            )
        read, logits = encoder.look(lambda output, _: output.logits, files, "classifying")
        read.check()
        # As transformers' pipeline has it.
        several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        shares = expit(logits) if several else softmax(logits, axis=-1)
        return list(config.id2label), read.numbers, read.unreadable, shares
    if encoder.tokenizer is None:
        raise ConfigError(
            f"--model {settings.model} has no head for classes and does not read texts; give a "
            "classifier, or CLIP or SigLIP with --labels"
        )
    if len(settings.labels) < 2:
        raise ConfigError('--labels: give at least two, such as --labels "a cat" "a dog"')
    templates = settings.templates or TEMPLATES
    classes = class_embeddings(encoder.texts, settings.labels, templates)
    read, embeds = encoder.look(image_vectors(config), files, "classifying")
    read.check()
    scale = float(np.exp(np.asarray(encoder.variables["params"]["logit_scale"]).reshape(())))
    shares = zero_shot_probabilities(embeds, classes, scale)
    return [label.strip() for label in settings.labels], read.numbers, read.unreadable, shares


def _rows(
    names: Sequence[str], files: Sequence[Path], shares: np.ndarray, top: int
) -> list[dict[str, Any]]:
    rows = []
    for file, row in zip(files, shares, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        scores: dict[str, float] = {}
        for i in best:  # from the highest on, which stays where two classes have one name
            scores.setdefault(names[i], round(float(row[i]), 6))
        label = names[best[0]]
        rows.append({"image": str(file), "label": label, "score": scores[label], "scores": scores})
    return rows


def _accuracy(
    names: Sequence[str], files: Sequence[Path], shares: np.ndarray, places: Sequence[Path]
) -> Any:
    truth = [_folder(file, places, names) for file in files]
    with contextlib.suppress(StopIteration):
        wrong = next(i for i, name in enumerate(truth) if name not in names)
        raise DataError(
            f"--measure: {files[wrong]} lies in a folder {truth[wrong]!r}, which is none of the "
            f"labels ({', '.join(names[:8])}{', …' if len(names) > 8 else ''})"
        )
    chosen = [names[i] for i in shares.argmax(-1)]
    return mean_figure([a == b for a, b in zip(truth, chosen, strict=True)])


def _folder(file: Path, places: Sequence[Path], names: Sequence[str]) -> str:
    """The folder that says what an image is: of those below the place where it was found the first
    that is a label, as in training; else its own."""
    # Where it lies, not where a link points.
    folders = Path(os.path.abspath(file)).parts[:-1]
    for place in places:
        top = Path(os.path.abspath(place)).parts
        if folders[: len(top)] == top:
            return next((name for name in folders[len(top) :] if name in names), folders[-1])
    return folders[-1]


def _page(names: Sequence[str], files: Sequence[Path], shares: np.ndarray, figure: Any) -> str:
    """A section for each label with the images that got it, the surest first."""
    chosen = shares.argmax(-1)
    sections = []
    for i in np.argsort(-np.bincount(chosen, minlength=len(names)), kind="stable"):
        rows = np.flatnonzero(chosen == i)
        if not len(rows):
            continue
        shown = rows[np.argsort(-shares[rows, i], kind="stable")][:_SHOWN]
        tiles = [
            report.Tile(read_image(files[r]), f"{shares[r, i]:.2f}\n{files[r].name}") for r in shown
        ]
        more = f", {len(shown)} of them shown" if len(shown) < len(rows) else ""
        heading = f"{names[i]}: {len(rows):,}{more}"
        sections.append(report.section(heading, report.sheet([tiles])))
    lead = f"{len(files):,} images" + ("" if figure is None else f", accuracy {figure}")
    return report.page("What the images show", lead, *sections)
