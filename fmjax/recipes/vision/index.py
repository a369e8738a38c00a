"""An index: the vectors of a folder's images, and which files they were made from."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fmjax.data.images import processor_files
from fmjax.recipes.vector_files import replace

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """Vectors of files.

    Attributes:
      model: fingerprint of what made the vectors, see `model_fingerprint`.
      names: N paths relative to the folder, in order.
      stamps: i64[N, 2], size in bytes and time of the last change in ns.
      vectors: f32[N, D], of length 1.
    """

    model: str
    names: tuple[str, ...]
    stamps: np.ndarray
    vectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class Changes:
    """What an update did: numbers of files, and those that could not be read, with the reason."""

    added: int
    changed: int
    removed: int
    kept: int
    unreadable: dict[Path, str]

    def __str__(self) -> str:
        counts = {"kept": self.kept, "new": self.added, "changed": self.changed}
        counts["removed"] = self.removed
        return ", ".join(f"{n:,} {what}" for what, n in counts.items() if n or what == "kept")


Embed = Callable[[Sequence[Path]], tuple[list[int], np.ndarray, dict[Path, str]]]
"""Files → (numbers of those that could be read, f32 of length 1 [·, D], reasons of the others)."""


def update(
    old: Index | None, model: str, folder: Path, files: Sequence[Path], embed: Embed
) -> tuple[Index, Changes]:
    """The index of the files as they are now; only new and changed ones are embedded.

    Args:
      old: of an earlier search; None, or one of another model, counts for nothing.
      model: fingerprint.
      folder: that all files are in.
      files: in the order of the new index.
      embed: is called with the new and changed files, if there are any.
    """
    known: dict[str, tuple[tuple[int, int], np.ndarray]] = {}
    if old is not None and old.model == model:
        stamps_of = map(tuple, old.stamps.tolist())
        pairs = zip(stamps_of, old.vectors, strict=True)
        known = dict(zip(old.names, pairs, strict=True))
    unreadable: dict[Path, str] = {}
    present, stamps = [], []
    for file in files:
        try:
            stamps.append(_stamp(file))
            present.append(file)
        except OSError as e:  # a link to nothing, or a file that has just gone
            gone = isinstance(e, FileNotFoundError)
            unreadable[file] = "no such file" if gone else f"unreadable ({e.strerror})"
    names = [file.relative_to(folder).as_posix() for file in present]
    vectors = {
        i: known[name][1]
        for i, (name, stamp) in enumerate(zip(names, stamps, strict=True))
        if name in known and known[name][0] == stamp
    }
    kept = len(vectors)
    new = [i for i in range(len(names)) if i not in vectors]
    if new:
        read, found, refused = embed([present[i] for i in new])
        unreadable |= refused
        vectors |= {new[number]: vector for number, vector in zip(read, found, strict=True)}
    order = sorted(vectors)
    index = Index(
        model,
        tuple(names[i] for i in order),
        np.array([stamps[i] for i in order], np.int64).reshape(-1, 2),
        np.array([vectors[i] for i in order], np.float32),
    )
    changed = sum(names[i] in known for i in new if i in vectors)
    return index, Changes(
        added=sum(i in vectors for i in new) - changed,
        changed=changed,
        removed=len(known.keys() - set(names)),
        kept=kept,
        unreadable=unreadable,
    )


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def looks_like_one(path: Path) -> bool:
    """Whether a file begins as an index does, damaged or not."""
    with path.open("rb") as file:
        beginning = file.read(64)
    return beginning.startswith(b"PK") and b"about.npy" in beginning


def read_index(path: Path) -> tuple[Index | None, str]:
    """(the index in a file, ""), or (None, why there is none)."""
    if not path.is_file():
        return None, "there is none yet"
    try:
        # Opened here, as NumPy leaves damaged archives open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about["version"] != VERSION:
                return None, f"{path} was written by another version"
            index = Index(about["model"], tuple(about["names"]), file["stamps"], file["vectors"])
        N = len(index.names)
        if index.stamps.shape != (N, 2) or index.vectors.shape[:1] != (N,):
            return None, f"{path} is damaged"
    except Exception as e:  # whatever NumPy, zip and JSON raise of files that are not theirs
        return None, f"{path} is damaged ({type(e).__name__})"
    return index, ""


def write_index(path: Path, index: Index) -> None:
    """Writes the file in one moment."""
    about = {"version": VERSION, "model": index.model, "names": index.names}
    data = np.frombuffer(json.dumps(about).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(
        path,
        lambda file: np.savez(file, about=data, stamps=index.stamps, vectors=index.vectors),
    )


def model_fingerprint(directory: Path, *settings: str) -> str:
    """Tells models, their preprocessing and the settings of an index apart.

    Configs, that of preprocessing in either of its places, count by their contents, weights by
    name, size and time of the last change: reading them through would take longer than many a
    search.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name in ("config.json", processor_files.FILE, processor_files.COMBINED):
        if (file := directory / name).is_file():
            digest.update(file.read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        digest.update(json.dumps((file.name, *_stamp(file))).encode())
    return digest.hexdigest()[:16]
