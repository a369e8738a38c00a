"""Random-access sources of examples: objects with `len()` and `source[i]` giving a dict.

A plain list of strings, or of dicts with a text field, is a source too.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fmjax.core.errors import DataError


class Source(Protocol):
    """Examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any] | str: ...


Paths = str | Path | Sequence[str | Path]


def expand(paths: Paths) -> list[Path]:
    """Files named by a path, a glob pattern or a list of them, in a fixed order.

    Raises:
      DataError: a name that no file has, or no name at all.
    """
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found = []
    for name in names:
        path = Path(name)
        if path.is_file():
            found.append(path)
            continue
        matches = sorted(Path(m) for m in glob.glob(str(name), recursive=True))
        matches = [m for m in matches if m.is_file()]
        if not matches:
            what = "is a directory; name its files, e.g. with *.txt" if path.is_dir() else (
                "no such file; check the path"
            )  # fmt: skip
            raise DataError(f"{name}: {what}")
        found += matches
    if not found:
        raise DataError("an empty list of files; name at least one")
    return found


def read_text(path: str | Path) -> str:
    """The whole of a UTF-8 text file, `.gz` or not; line ends become "\\n".

    Raises:
      DataError: missing, not UTF-8 (names the line), or a broken archive.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file; check the path") from e
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[e.start]:02x}); convert the file, e.g. "
            "with iconv -t utf-8"
        ) from e
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise DataError(f"{path}: broken gzip file ({e}); copy it again") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _nonempty(examples: list, paths: Paths, what: str) -> list:
    if not examples:
        names = [paths] if isinstance(paths, (str, Path)) else list(paths)
        raise DataError(f"{', '.join(map(str, names))}: no {what}; give a file with text in it")
    return examples


class TextSource:
    """Text files as examples `{"text": str}`.

    Args:
      paths: a file, a glob pattern, or a list of them; `.gz` allowed. Held in memory.
      by: "document" (separated by blank lines), "line", or "file".

    Raises:
      DataError: a missing, empty or unreadable file.
    """

    def __init__(self, paths: Paths, *, by: str = "document"):
        self._texts: list[str] = []
        for path in expand(paths):
            self._texts += _nonempty(list(_split(read_text(path), by)), path, f"{by} with text")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": self._texts[index]}


def _split(text: str, by: str) -> Iterator[str]:
    if by == "file":
        if text.strip():
            yield text
    elif by == "line":
        yield from (line for line in text.split("\n") if line.strip())
    elif by == "document":
        lines: list[str] = []
        for line in text.split("\n") + [""]:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "\n".join(lines)
                lines = []
    else:
        raise DataError(f'by="{by}" is unknown; use "document", "line" or "file"')


class JsonlSource:
    """JSON-lines files as examples; blank lines are skipped.

    Args:
      paths: a file, a glob pattern, or a list of them; `.gz` allowed. Held in memory.
      fields: name in the example → name in the file, for example `{"text": "body"}`; default is
        every field under its own name.

    Raises:
      DataError: a missing or empty file; a line that is not a JSON object or lacks a field (names
        the file and the line).
    """

    def __init__(self, paths: Paths, fields: Mapping[str, str] | None = None):
        self._examples: list[dict[str, Any]] = []
        for path in expand(paths):
            examples = []
            for number, line in enumerate(read_text(path).split("\n"), 1):
                if line.strip():
                    examples.append(_pick(parse_line(line, path, number), fields, path, number))
            self._examples += _nonempty(examples, path, "lines")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index]


def parse_line(line: str, path: str | Path, number: int) -> dict[str, Any]:
    """The object on one line of JSON, or DataError naming the file and the line."""
    try:
        example = json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(
            f"{path}, line {number}: not valid JSON ({e.msg} at column {e.colno}); repair or "
            "remove the line"
        ) from e
    if not isinstance(example, dict):
        raise DataError(
            f"{path}, line {number}: a JSON {type(example).__name__}, not an object; write "
            '{"text": …} on each line'
        )
    return example


def _pick(example: dict, fields: Mapping[str, str] | None, path: Path, number: int) -> dict:
    if fields is None:
        return example
    for name in fields.values():
        if name not in example:
            raise DataError(
                f'{path}, line {number}: no field "{name}"; it has {", ".join(example) or "none"}'
            )
    return {ours: example[theirs] for ours, theirs in fields.items()}


class TfdsSource:
    """A prepared TensorFlow Datasets data set, read by random access without TensorFlow.

    Args:
      name: a TFDS name ("imdb_reviews", "name/config:version"), or the directory of a prepared
        builder (with `dataset_info.json`). The files must be ArrayRecord.
      split: "train", "validation", "train[:10%]", …
      data_dir: where named data sets live; default TFDS's own.
      fields: name in the example → feature name; default is every feature under its own name.
      download: prepare a named data set that is missing (fetches it).

    Byte strings become `str`. Raises:
      DataError: not found or not prepared, unknown split or field, or not ArrayRecord.
    """

    def __init__(
        self,
        name: str | Path,
        split: str = "train",
        *,
        data_dir: str | Path | None = None,
        fields: Mapping[str, str] | None = None,
        download: bool = False,
    ):
        import tensorflow_datasets as tfds

        self._fields = fields
        try:
            if (Path(name) / "dataset_info.json").is_file():
                self._data = tfds.builder_from_directory(str(name)).as_data_source(split=split)
            elif isinstance(name, Path) or Path(name).is_dir():
                raise DataError(
                    f"{name}: no dataset_info.json there; give the version directory of a "
                    "prepared data set, such as …/text/1.0.0"
                )
            else:
                self._data = tfds.data_source(
                    str(name),
                    split=split,
                    data_dir=None if data_dir is None else str(data_dir),
                    download=download,
                    builder_kwargs={"file_format": "array_record"},
                )
        except DataError:
            raise
        except Exception as e:  # TFDS raises whatever its readers, registry and network raise
            reason = " ".join(str(e).split())[:200]
            raise DataError(
                f'TFDS data set "{name}", split "{split}": {reason or type(e).__name__}; check the '
                "name and the split, and prepare it as ArrayRecord (file_format="
                '"array_record"), or pass download=True'
            ) from e
        if len(self._data) == 0:
            raise DataError(f'TFDS data set "{name}", split "{split}" is empty')
        missing = set((fields or {}).values()) - set(self._data[0])
        if missing:
            raise DataError(
                f'TFDS data set "{name}" has no feature "{sorted(missing)[0]}"; it has '
                f"{', '.join(sorted(self._data[0]))}"
            )

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of each feature that is a ClassLabel, or a sequence of them."""
        found = {}
        for name, feature in self._data.dataset_info.features.items():
            names = getattr(getattr(feature, "feature", feature), "names", None)
            if names:
                found[name] = tuple(names)
        return found

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {
            k: v.decode("utf-8") if isinstance(v, bytes) else v
            for k, v in self._data[index].items()
        }
        if self._fields is None:
            return example
        return {ours: example[theirs] for ours, theirs in self._fields.items()}


def text_of(example: Any, field: str, index: int) -> str:
    """The text of one example, or DataError naming its index."""
    if isinstance(example, str):
        return example
    text = example.get(field) if isinstance(example, Mapping) else None
    if not isinstance(text, str):
        have = ", ".join(map(str, example)) if isinstance(example, Mapping) else (
            f"a {type(example).__name__}"
        )  # fmt: skip
        raise DataError(
            f'example {index} has no text in field "{field}" (it has {have}); name the text field '
            "with text_field="
        )
    return text
