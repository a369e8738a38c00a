"""Text by name: what `--data` and `--eval-data` understand."""

import glob
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from fmjax.core.errors import DataError
from fmjax.data import (
    JsonlSource,
    Source,
    TextSource,
    TfdsSource,
    load_corpus,
    train_validation_split,
)
from fmjax.data.sources import expand, text_of
from fmjax.recipes.options import Data

CORPORA = ("kjv", "movie_reviews")


def open_text(
    name: str, split: str = "train", *, by: str = "document", text_field: str = "text"
) -> Source:
    """The source that a name stands for.

    Args:
      name: see `Data.data`.
      split: "train", "validation" or "all" of what has splits: corpora and TFDS data sets. Files
        have none and are read whole.
      by: what is one document of a .txt file, see `TextSource`.
      text_field: of TFDS examples, checked here.

    Raises:
      DataError: nothing has this name, or it cannot be read.
    """
    if name in CORPORA:
        return load_corpus(name, split)
    fields = {"text": text_field}
    if name.startswith("tfds:"):
        return _tfds(name.removeprefix("tfds:"), split, fields)
    if Path(name).is_dir():
        return _tfds(Path(name), split, fields)
    if not Path(name).is_file() and not glob.glob(name, recursive=True):
        raise DataError(
            f"{name}: no such file; give a .txt or .jsonl file, a shipped corpus "
            f"({', '.join(CORPORA)}), or tfds:NAME"
        )
    if Path(name.removesuffix(".gz")).suffix in (".jsonl", ".ndjson"):
        return JsonlSource(name, fields)
    return TextSource(name, by=by)


def _tfds(name: str | Path, split: str, fields: dict[str, str]) -> Source:
    if split != "validation":
        return TfdsSource(name, split, fields=fields)
    try:
        return TfdsSource(name, "validation", fields=fields)
    except DataError as missing:
        try:
            return TfdsSource(name, "test", fields=fields)
        except DataError:
            raise missing from None


def open_held_out(data: Data) -> list[Source]:
    """What `eval_data` names: validation splits, and files whole."""
    return [_open(data, name, "validation") for name in data.eval_data]


def open_train_and_held_out(data: Data) -> tuple[list[Source], list[Source]]:
    """The sources to train on, one for each name, and those to evaluate on.

    Raises:
      DataError: no name, a name that stands for nothing, or a fraction outside [0, 1).
    """
    if not data.data:
        raise DataError("--data names no text; give a file or a shipped corpus such as kjv")
    if data.eval_data:
        opened = [_open(data, name, "train") for name in data.data], open_held_out(data)
        _note_both(_files(data.eval_data) & _files(data.data))
        return opened
    train, held_out, seen = [], [], set()
    for name in data.data:
        if name in CORPORA or name.startswith("tfds:") or Path(name).is_dir():
            train.append(_open(data, name, "train"))
            held_out.append(_open(data, name, "validation"))
        else:
            whole, files = _open(data, name, "all"), _files([name])
            # Each name is split by itself, so that what stands under two of them is on both sides.
            _note_both(files & seen if data.eval_fraction else ())
            seen |= files
            ours, theirs = train_validation_split(whole, data.eval_fraction)
            train.append(ours)
            held_out += [theirs] if theirs else []
    return train, held_out


def _note_both(files: Collection[Path]) -> None:
    """Says which files are on both sides, which is right only where learning by heart is."""
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        print(f"note: texts of {min(files)}{more} are trained on and evaluated on")


def _files(names: Sequence[str]) -> set[Path]:
    """The files behind names, other than corpora and TFDS data sets."""
    own = [n for n in names if n not in CORPORA and not n.startswith("tfds:")]
    files = [name for name in own if not Path(name).is_dir()]
    return {file.resolve() for file in expand(files)} if files else set()


def _open(data: Data, name: str, split: str) -> Source:
    return open_text(name, split, by=data.split_by, text_field=data.text_field)


def texts(sources: Sequence[Source]) -> Iterator[str]:
    """The texts of all examples, one after the other."""
    for source in sources:
        for i in range(len(source)):
            yield text_of(source[i], "text", i)
