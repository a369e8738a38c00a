"""Searching a folder of images."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmjax import report
from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import nearest
from fmjax.evals.zero_shot import unit
from fmjax.recipes import vector_files
from fmjax.recipes.vision import index as indices
from fmjax.recipes.vision.encoder import Encoder, image_vectors, open_encoder
from fmjax.recipes.vision.reading import find_images, plain, read_image, report_unreadable
from fmjax.recipes.vision.retrieve import Retrieve


class Found(NamedTuple):
    """The answers to one query: the query as shown, and (file, cosine), the nearest first."""

    query: str | Path
    answers: list[tuple[Path, float]]


def retrieve(settings: Retrieve) -> None:
    """Brings the index up to date, searches and shows; see `Retrieve`.

    Raises:
      FmjaxError: what cannot be read or used.
    """
    if not settings.text and not settings.image:
        raise ConfigError('give what to look for: --text "a red car" or --image FILE')
    if settings.top < 1:
        raise ConfigError(f"--top {settings.top} must be at least 1")
    if not settings.images.is_dir():
        raise ConfigError(f"--images {settings.images}: no such folder")
    if empty := [text for text in settings.text if not text.strip()]:
        raise ConfigError(f"--text {empty[0]!r} is empty; say what to look for")
    if missing := [file for file in settings.image if not file.is_file()]:
        raise ConfigError(f"--image {missing[0]}: no such file")
    vector_files.check_place("--html", settings.html)
    files = find_images([settings.images])
    encoder = open_encoder(
        settings.model,
        mesh=settings.mesh,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
    )
    queries = _queries(settings, encoder)
    index = _index(settings, encoder, files)
    found = _search(settings, queries, index)
    if settings.html is not None:
        report.write(settings.html, _page(settings, found, len(index.names)))
    _print(found, settings.json)


def _index(settings: Retrieve, encoder: Encoder, files: Sequence[Path]) -> indices.Index:
    """The index as the folder is now, kept for the next search; says on stderr what was done."""
    model = indices.model_fingerprint(settings.model, str(encoder.model.execution.dtype))
    path = settings.index or settings.images / f".fmjax-index-{model}.npz"
    if settings.index and path.is_file() and not indices.looks_like_one(path):
        raise ConfigError(f"--index {path} is a file of another kind; give the index a new name")
    old, reason = indices.read_index(path)
    if old is not None and old.model != model:
        old, reason = None, f"{path} is of another model"
    pick = image_vectors(encoder.model.config)

    def embed(new: Sequence[Path]) -> tuple[list[int], np.ndarray, dict[Path, str]]:
        read, vectors = encoder.look(pick, new, "indexing")
        return read.numbers, unit(vectors), read.unreadable

    index, changes = indices.update(old, model, settings.images, files, embed)
    if changes.added or changes.changed or changes.removed:
        try:
            indices.write_index(path, index)
        except OSError as e:
            raise ConfigError(
                f"the index {path} cannot be written ({e.strerror}); name a place for it with "
                "--index FILE"
            ) from e
    why = f" (made anew: {reason})" if reason else ""
    print(f"index: {changes}{why}", file=sys.stderr)
    report_unreadable(changes.unreadable)
    if not index.names:
        raise DataError(f"--images {settings.images}: none of the images can be read")
    return index


def _queries(settings: Retrieve, encoder: Encoder) -> np.ndarray:
    """f32[queries, D]: of the texts, then of the images."""
    vectors = []
    if settings.text:
        vectors.append(encoder.texts(settings.text))
    if settings.image:
        pick = image_vectors(encoder.model.config)
        read, found = encoder.look(pick, settings.image, "looking")
        if read.unreadable:
            file, reason = next(iter(read.unreadable.items()))
            raise DataError(f"--image {file}: {reason}; give an image that can be read")
        vectors.append(found)
    return np.concatenate(vectors)


def _search(settings: Retrieve, vectors: np.ndarray, index: indices.Index) -> list[Found]:
    queries: list[str | Path] = [*settings.text, *settings.image]
    # One more, in whose place the query itself may stand.
    k = min(settings.top + bool(settings.image), len(index.names))
    neighbours = nearest(vectors, index.vectors, k)
    out = []
    for query, cosines, rows in zip(queries, *neighbours, strict=True):
        own = query.resolve() if isinstance(query, Path) else None
        answers = [(settings.images / index.names[i], float(c)) for i, c in
                   zip(rows, cosines, strict=True)]  # fmt: skip
        answers = [(file, c) for file, c in answers if file.resolve() != own]
        out.append(Found(query, answers[: settings.top]))
    return out


def _print(found: Sequence[Found], as_json: bool) -> None:
    for query, answers in found:
        if as_json:
            for rank, (file, cosine) in enumerate(answers, 1):
                row: dict[str, Any] = {"query": str(query), "rank": rank, "image": str(file)}
                print(plain(json.dumps(row | {"score": round(cosine, 6)}, ensure_ascii=False)))
            continue
        print(plain(str(query)))
        for file, cosine in answers:
            print(plain(f"  {cosine:.3f}  {file}"))


def _page(settings: Retrieve, found: Sequence[Found], number: int) -> str:
    sections = []
    for query, answers in found:
        first = [] if isinstance(query, str) else [_tile(query, "the query", "query")]
        tiles = [_tile(file, f"{cosine:.3f}\n{_short(file, settings.images)}") for file, cosine in
                 answers]  # fmt: skip
        heading = query if isinstance(query, str) else query.name
        sections.append(report.section(heading, report.sheet([[*first, *tiles]])))
    lead = f"The nearest of {number:,} images in {settings.images}, with their cosines."
    return report.page("Images found", lead, *sections)


def _tile(file: Path, caption: str, kind: str = "") -> report.Tile:
    return report.Tile(read_image(file), caption, kind)


def _short(file: Path, folder: Path) -> str:
    return os.path.relpath(file, folder)
