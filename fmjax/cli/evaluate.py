"""`fmjax eval`."""

import dataclasses
import json
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a model's perplexity; with --test FILE, how well a fine-tuned one does its task.

    Perplexity by token depends on the tokenizer; by word, and bits per byte, compare across them.

    Attributes:
      model: Model directory.
      data: Text to measure, one or several of: kjv, movie_reviews, tfds:NAME or a TFDS directory
        (their --split); a .txt or .jsonl file, .gz or not (the whole of it).
      adapter: Directory of an adapter in PEFT's format.
      split: Of corpora and TFDS data sets.
      text_field: Field of JSON lines and TFDS examples that holds the text.
      split_by: What is one document in a .txt file.
      batch_size: Rows in a batch, over all devices.
      sequence_length: Tokens in a row, at most the model's context; longer documents are cut.
      mesh: Devices by axis, such as data=2,fsdp=4. Without it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
      quantize: Read the weights in 4 bits (nf4) or 8 (int8), as an adapter of --method qlora wants
        them.
      json: Print JSON instead of a table.
    """

    model: Path
    data: tuple[str, ...]
    adapter: Path | None = None
    split: Literal["validation", "train", "all"] = "validation"
    text_field: str = "text"
    split_by: Literal["document", "line", "file"] = "document"
    batch_size: int = 8
    sequence_length: int = 512
    mesh: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal["none", "nf4", "int8"] = "none"
    json: bool = False

    def run(self) -> None:
        from fmjax.recipes.measure import measure, open_subject
        from fmjax.recipes.text import open_text

        sources = {
            name: open_text(name, self.split, by=self.split_by, text_field=self.text_field)
            for name in self.data
        }
        subject = open_subject(
            self.model,
            self.adapter,
            mesh=self.mesh,
            dtype=self.dtype,
            quantize=self.quantize,
        )
        rows = {
            name: measure(subject, source, self.batch_size, self.sequence_length)
            for name, source in sources.items()
        }
        if self.json:
            print(json.dumps({name: found.to_dict() for name, found in rows.items()}, indent=2))
        else:
            _print(rows)


def _print(rows) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("text", title="perplexity")
    for column in ("per token", "per word", "bits per byte", "tokens", "bytes"):
        table.add_column(column, justify="right")
    for name, p in rows.items():
        figures = (f"{p.per_token:,.2f}", f"{p.per_word:,.1f}", f"{p.bits_per_byte:.3f}")
        table.add_row(name, *figures, f"{p.tokens:,}", f"{p.nbytes:,}")
    Console().print(table)
