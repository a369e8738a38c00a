"""`fmjax eval --test`."""

import dataclasses
import json
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class EvaluateTask:
    """Measure a fine-tuned model on a file with labels.

    Prints accuracy and F1, entity F1, or exact match and F1 of answers, whatever the model's task
    is, with their bootstrap intervals.

    Attributes:
      model: Model directory with a head for a task, such as `fmjax finetune --task` writes.
      adapter: Directory of an adapter that belongs to the model, for the methods that put virtual
        tokens before the text; others are folded into it already.
      test: File with labels, in the form that the task is trained from.
      text_column: Column of the text (classification), or of the words (tagging).
      pair_column: Column of a second text (classification of pairs).
      label_column: Column of the label (classification), or of the tags (tagging).
      scheme: Of tags: found out from the file, or one of BIO, IOB1, BIOES, plain.
      batch_size: Examples in a batch, over all devices.
      max_length: Tokens of an example at most; as in training.
      stride: Tokens that neighbouring windows share.
      mesh: Devices by axis, such as data=4. Without it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
      json: Print JSON instead of a table, with the figures of every label.
    """

    model: Path
    test: str
    adapter: Path | None = None
    text_column: str = ""
    pair_column: str = ""
    label_column: str = ""
    scheme: str = ""
    batch_size: int = 32
    max_length: int = 128
    stride: int = 64
    mesh: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    json: bool = False

    def run(self) -> None:
        from fmjax.recipes.tasks.answers import measure
        from fmjax.recipes.tasks.results import print_figures, to_json

        prepared, measured = measure(self)
        if self.json:
            print(json.dumps(to_json(measured), indent=2, ensure_ascii=False))
            return
        print(prepared.note)
        print_figures(f"{self.model} on {self.test}", measured)
