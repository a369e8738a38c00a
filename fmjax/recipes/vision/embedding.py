"""Images to vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmjax.core.errors import DataError
from fmjax.evals.zero_shot import unit
from fmjax.recipes import vector_files
from fmjax.recipes.vision.embed import EmbedImages
from fmjax.recipes.vision.encoder import image_vectors, open_encoder
from fmjax.recipes.vision.reading import find_images, plain, report_unreadable


def write_image_vectors(settings: EmbedImages) -> None:
    """Reads, embeds and writes; see `EmbedImages`.

    Raises:
      FmjaxError: what cannot be read, or an output of an unknown kind; found before anything is
        written.
    """
    vector_files.check_suffix(settings.output)
    vector_files.check_place("--output", settings.output)
    files = find_images(settings.images)
    if settings.output.suffix == ".npy":
        _check_lines(files)
    encoder = open_encoder(
        settings.model,
        mesh=settings.mesh,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
    )
    pick = image_vectors(encoder.model.config, settings.pooling)
    read, vectors = encoder.look(pick, files, "embedding")
    read.check()
    vectors = vectors if settings.keep_length else unit(vectors)
    names = [str(files[i]) for i in read.numbers]
    rows = [{"image": plain(name)} for name in names]
    vector_files.write_vectors(settings.output, rows, vectors.astype(np.float32))
    if settings.output.suffix == ".npy":
        # A name that is no UTF-8 as the file system has it, byte for byte.
        lines = "".join(f"{name}\n" for name in names).encode(errors="surrogateescape")
        beside = settings.output.with_suffix(".txt")
        vector_files.replace(beside, lambda file: file.write(lines))
    report_unreadable(read.unreadable)
    print(plain(f"{settings.output}: {vectors.shape[0]:,} × {vectors.shape[1]:,}"))


def _check_lines(files: Sequence[Path]) -> None:
    """Raises a DataError for a name that is not one line, as the names beside .npy are."""
    broken = [file for file in files if len(str(file).splitlines()) > 1]
    if broken:
        raise DataError(
            f"{str(broken[0])!r} has a line break in its name, but the names beside a .npy are a "
            "line each; rename it, or write .parquet"
        )
