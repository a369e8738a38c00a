"""Files that appear whole, and those that hold vectors."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fmjax.core.errors import ConfigError, DataError

SUFFIXES = (".npy", ".parquet")


def check_suffix(path: Path) -> None:
    """Raises ConfigError unless `write_vectors` knows the kind of file."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--output {path}: end the name in {' or '.join(SUFFIXES)}")


def check_place(option: str, path: Path | None) -> None:
    """Raises ConfigError where no file can come to be, before anything is computed for it."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no such directory; make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a directory; name a file in it")


def write_vectors(path: Path, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
    """Writes vectors f32 [N, D]: alone as .npy, beside the fields of their N rows as .parquet.

    Raises:
      DataError: fields that make no columns of a table.
    """
    if path.suffix == ".npy":
        replace(path, lambda file: np.save(file, vectors))
    else:
        _write_parquet(path, rows, vectors)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
    import pyarrow
    import pyarrow.parquet

    if any("embedding" in row for row in rows):
        raise DataError('the input has a field "embedding"; rename it, or write .npy')
    try:
        table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    except pyarrow.ArrowException as e:
        raise DataError(
            f"the fields of the input do not make columns ({e}); give each field values of one "
            "type, or write .npy"
        ) from e
    flat = pyarrow.array(vectors.reshape(-1))
    column = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = table.append_column("embedding", column)
    replace(path, lambda file: pyarrow.parquet.write_table(table, file))


def replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """A file that appears whole, in the place of an earlier one."""
    part = path.with_name(f".incomplete-{path.name}")
    try:
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
