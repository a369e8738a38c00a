"""Pictures in tar shards laid out as WebDataset has them: files of one sample side by side, with
one name and different endings (`000.jpg`, `000.txt`, `000.cls`, `000.json`).

Nothing is unpacked: of each shard the table of contents is read once, and then each sample's bytes
where they stand, so that order and resumption are free. Links, devices and directories in an
archive are passed over, and its paths are names only.
"""

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fmjax.core.errors import DataError
from fmjax.data.images.decode import SUFFIXES, ImageError
from fmjax.data.images.labels import number_labels
from fmjax.data.images.sources import ImageSource
from fmjax.data.sources import Paths, expand

_CAPTION_FIELDS = ("captions", "caption", "text")
_LONGEST_LABEL = 256  # bytes


class _Part(NamedTuple):
    offset: int
    size: int


class _Sample(NamedTuple):
    shard: int
    key: str
    suffix: str  # of the picture
    parts: dict[str, _Part]  # by suffix
    label: str | None = None


class TarImages(ImageSource):
    """Examples of tar shards.

    A sample's picture is its file with a picture's ending, the first of several, and one such as
    `.seg.png` only where there is no other. `.txt` is its caption, `.cls` its label, and in `.json`
    the first of captions, caption and text is looked for where there is no `.txt`; what is neither
    UTF-8 nor JSON stands as bytes for a caption that cannot be used. Samples without a picture are
    passed over, and counted in `without_picture`.

    Args:
      paths: uncompressed .tar files: a path, a glob pattern, or a list.
      class_names: see `number_labels`.

    Raises:
      DataError: missing, compressed or broken archives (names the file), no pictures in them, an
        unknown label, or pictures that differ after the first dot of their names alone.
    """

    def __init__(self, paths: Paths, *, class_names: Sequence[str] | None = None):
        self._shards = expand(paths)
        self._samples: list[_Sample] = []
        self.without_picture = 0
        for number, path in enumerate(self._shards):
            for key, parts, label in _samples(path):
                suffix = _picture(path, key, parts)
                if suffix is None:
                    self.without_picture += 1
                else:
                    self._samples.append(_Sample(number, key, suffix, parts, label))
        where = ", ".join(map(str, self._shards[:3])) + (", …" if len(self._shards) > 3 else "")
        if not self._samples:
            raise DataError(
                f"{where}: no pictures there; samples are files such as 000.jpg, 000.txt"
            )
        self._labels, self.class_names = number_labels(
            [sample.label for sample in self._samples], class_names, where
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        example: dict[str, Any] = {"image": self._read(sample, sample.suffix)}
        if self._labels[index] is not None:
            example["label"] = self._labels[index]
        return example | self._caption(sample)

    def name(self, index: int) -> str:
        sample = self._samples[index]
        return f"{self._shards[sample.shard]}: {sample.key}.{sample.suffix}"

    def group(self, index: int) -> str:
        sample = self._samples[index]
        return f"{self._shards[sample.shard].name} {sample.key}"

    def facts(self, index: int) -> str:
        return repr(self._labels[index])

    def _read(self, sample: _Sample, suffix: str) -> bytes:
        part = sample.parts[suffix]
        with self._shards[sample.shard].open("rb") as file:
            file.seek(part.offset)
            data = file.read(part.size)
        if len(data) < part.size:
            raise ImageError("truncated", "the archive ends in it")
        return data

    def _caption(self, sample: _Sample) -> dict[str, Any]:
        suffix = next((s for s in ("txt", "json") if s in sample.parts), None)
        if suffix is None:
            return {}
        data = self._read(sample, suffix)
        try:
            if suffix == "txt":
                return {"caption": data.decode("utf-8").strip()}
            content = json.loads(data)
        except ValueError:  # neither UTF-8 nor JSON, which those may not mind who want the picture
            return {"caption": data}
        fields = content if isinstance(content, dict) else {}
        value = next((fields[f] for f in _CAPTION_FIELDS if fields.get(f)), None)
        if isinstance(value, list):
            return {"caption": value[0], "captions": tuple(value)}
        return {} if value is None else {"caption": value}


def _picture(path: Path, key: str, parts: Sequence[str]) -> str | None:
    """Which of a sample's files is its picture.

    Raises:
      DataError: several, all with more than one dot in their names, as `a 1.0.png` and `a 1.1.png`,
        which the layout takes for files of one sample.
    """
    pictures = [s for s in parts if f".{s.rpartition('.')[2]}" in SUFFIXES]
    plain = [s for s in pictures if "." not in s]
    if len(pictures) > 1 and not plain:
        raise DataError(
            f"{path}: {key}.{pictures[0]} and {key}.{pictures[1]} are one sample, as names end at "
            "their first dot; pack them with other names"
        )
    return next(iter(plain or pictures), None)


def _samples(path: Path) -> list[tuple[str, dict[str, _Part], str | None]]:
    """The samples of a shard, in order: key, where each of its files lies, label."""
    found: dict[str, dict[str, _Part]] = {}
    labels: dict[str, str] = {}
    try:
        # "r:" refuses compression, in which there is no going to a place.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                stem, dot, suffix = name.partition(".")
                if not member.isfile() or member.issparse() or not stem or not dot:
                    continue
                key = str(PurePosixPath(member.name).parent / stem)
                part = _Part(member.offset_data, member.size)
                if part.offset + part.size > os.path.getsize(path):
                    raise tarfile.ReadError("unexpected end of data")
                found.setdefault(key, {})[suffix.lower()] = part
                if suffix.lower() == "cls":
                    text = archive.extractfile(member).read(_LONGEST_LABEL)
                    labels[key] = text.decode("utf-8", "replace")
            # What a cut within a header leaves, tarfile takes for the end.
            if 0 < os.path.getsize(path) - archive.offset < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.TarError as e:
        with path.open("rb") as file:
            magic = file.read(4)
        compressed = magic[:2] in (b"\x1f\x8b", b"BZ") or magic in (b"\xfd7zX", b"\x28\xb5\x2f\xfd")
        remedy = "unpack the compression, as its samples are read in any order" if compressed else (
            "copy it again"
        )  # fmt: skip
        raise DataError(f"{path}: not a readable tar archive ({e}); {remedy}") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
    return [(key, parts, labels.get(key)) for key, parts in found.items()]
