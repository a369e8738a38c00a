"""`fmjax predict`."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TextIO


@dataclasses.dataclass(frozen=True)
class Predict:
    """Answer with a fine-tuned model: labels of texts, entities in them, answers to questions.

    Prints one JSON object a line: the fields of the input, and
    - of a classifier label, score and scores (of several labels: a list of those at --threshold);
    - of a tagger entities, each with label, score, text, start and end (in characters);
    - of question answering answer, score, start and end.
    A field of the input that has such a name itself becomes given_label and so on.

    Attributes:
      model: Model directory with a head for a task, such as `fmjax finetune --task` writes.
      adapter: Directory of an adapter that belongs to the model, for the methods that put virtual
        tokens before the text; others are folded into it already.
      input: .jsonl, .tsv, .csv or .txt (a text a line), .gz or not; or - for standard input, lines
        of JSON or plain text.
      output: File to write; without it, standard output.
      text_column: Field that holds the text.
      pair_column: Field of a second text, for classifiers of pairs.
      threshold: Of labels that are independent of each other: how probable those named are, 0 to 1.
      null_threshold: Of questions: no answer where its logit is higher than the best span's by more
        than this. Without it there always is an answer.
      batch_size: Texts in a batch, over all devices.
      max_length: Tokens of a text at most; longer ones are cut, and read in windows by taggers and
        question answering.
      stride: Tokens that neighbouring windows share.
      mesh: Devices by axis, such as data=4. Without it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
    """

    model: Path
    input: str
    output: Path | None = None
    adapter: Path | None = None
    text_column: str = "text"
    pair_column: str = ""
    threshold: float = 0.5
    null_threshold: float | None = None
    batch_size: int = 32
    max_length: int = 256
    stride: int = 64
    mesh: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def run(self) -> None:
        from fmjax.recipes.tasks.answers import answers
        from fmjax.recipes.tasks.inputs import write_lines

        # The first rows are answered before the file is opened: an error leaves it as it was.
        rows = answers(self)
        first = next(rows)
        with _open(self.output) as file:
            write_lines(file, first)
            for more in rows:
                write_lines(file, more)


@contextlib.contextmanager
def _open(path: Path | None) -> Iterator[TextIO]:
    """A file that appears whole, or standard output."""
    if path is None:
        yield sys.stdout
        return
    part = path.with_name(f".incomplete-{path.name}")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
