"""Pictures named in a table, with captions or labels: TSV, CSV or JSON lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.images.labels import number_labels
from fmjax.data.images.sources import ImageSource
from fmjax.data.sources import Paths, expand
from fmjax.data.tasks.formats import KINDS, FileRows, read_rows

SUFFIXES = KINDS
_IMAGES = ("image", "file_name", "filename", "image_path", "filepath", "path", "file")
_CAPTIONS = ("caption", "captions", "text", "title")
_LABELS = ("label", "class")


class TableImages(ImageSource):
    """Examples of the rows of a table. Rows with the same picture are one example with several
    captions (its label is the first one's).

    Args:
      paths: a .tsv, .csv or .jsonl file (or .gz), a glob pattern, or a list; held in memory, the
        pictures are read when they are asked for. Their paths are relative to the table's own.
      image_field, caption_field, label_field: columns; by default the first of image, file_name,
        filename, image_path, filepath, path and file; of caption, captions, text and title; and of
        label and class. In JSON lines captions may be a list.
      class_names: see `number_labels`.

    Raises:
      DataError: a file that cannot be read as a table, a column that is not there, a row without a
        picture or with a URL (names file and line), or an unknown label.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        image_field: str | None = None,
        caption_field: str | None = None,
        label_field: str | None = None,
        class_names: Sequence[str] | None = None,
    ):
        self._pictures: dict[Path, str] = {}  # to the path as the table has it
        self._captions: list[list[Any]] = []
        self._has_captions = False
        labels: list[Any] = []
        files = expand(paths)
        for file in files:
            table = read_rows(str(file))
            image = _column(table, file, image_field, _IMAGES, "image_field")
            if image is None:
                raise DataError(
                    f"{file}: no column of pictures (it has {', '.join(table.columns)}); call it "
                    '"image", or pass image_field='
                )
            caption = _column(table, file, caption_field, _CAPTIONS, "caption_field")
            label = _column(table, file, label_field, _LABELS, "label_field")
            self._has_captions |= caption is not None
            places = {path: i for i, path in enumerate(self._pictures)}
            for row, line in zip(table.rows, table.lines, strict=True):
                path = _path(row.get(image), file, line)
                if path not in places:
                    places[path] = len(self._captions)
                    self._pictures[path] = str(row[image])
                    self._captions.append([])
                    labels.append(row.get(label) if label else None)
                if caption:
                    said = row.get(caption)
                    self._captions[places[path]] += said if isinstance(said, list) else [said]
        where = ", ".join(map(str, files))
        self._labels, self.class_names = number_labels(labels, class_names, where)
        self._paths = list(self._pictures)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"image": self._paths[index]}
        if self._labels[index] is not None:
            example["label"] = self._labels[index]
        if self._has_captions:
            # An empty one beside others is none; alone it is what is wrong with the example.
            said = self._captions[index]
            captions = [c for c in said if isinstance(c, str) and c.strip()] or said[:1]
            example["caption"] = captions[0] if captions else None
            example["captions"] = tuple(captions)
        return example

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def group(self, index: int) -> str:
        return self._pictures[self._paths[index]]

    def facts(self, index: int) -> str:
        return repr((self._labels[index], self._captions[index]))


def _column(
    table: FileRows, file: Path, given: str | None, usual: tuple[str, ...], option: str
) -> str | None:
    if given is None:
        return next((name for name in usual if name in table.columns), None)
    if given not in table.columns:
        raise DataError(
            f'{file}: no column "{given}"; it has {", ".join(table.columns)}; pass another {option}'
        )
    return given


def _path(value: Any, file: Path, line: int) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{file}, line {line}: no picture's path; fill it in or remove the row")
    if value.startswith(("http://", "https://")):
        raise DataError(
            f"{file}, line {line}: a URL, not a path; download the pictures first, for example "
            "with img2dataset"
        )
    return file.parent / value
