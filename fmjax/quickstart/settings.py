"""Settings of `fmjax quickstart`."""

import dataclasses
import os
from pathlib import Path


def _out() -> Path:
    return Path(os.environ.get("FMJAX_QUICKSTART_OUT", "runs/quickstart"))


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Train, adapt, measure and export a small model on text that ships with fmjax.

    Trains a tokenizer, pretrains a LLaMA-style model on the King James Bible, adapts it to
    sentences of movie reviews with LoRA, measures and samples both, and writes a model directory
    for transformers, an adapter for PEFT and an HTML report. Under five minutes on two CPU cores.
    Run again, it goes on where it was stopped and keeps what is finished.

    Attributes:
      out: Directory for everything (also FMJAX_QUICKSTART_OUT).
      vocab_size: Ids of the tokenizer.
      hidden_size: Width of the model; a multiple of 32.
      layers: Layers of the model.
      sequence_length: Tokens in a row.
      batch_size: Rows in a batch.
      steps: Updates of pretraining.
      learning_rate: Peak learning rate of pretraining.
      adapt_steps: Updates of the adaptation.
      adapt_learning_rate: Peak learning rate of the adaptation.
      rank: Rank of LoRA's matrices.
      fresh: Start over: remove what an earlier quickstart left in --out.
      tiny: A model and a text so small that everything ends in seconds, to try the machinery.
    """

    out: Path = dataclasses.field(default_factory=_out)
    vocab_size: int = 1024
    hidden_size: int = 256
    layers: int = 4
    sequence_length: int = 128
    batch_size: int = 8
    steps: int = 600
    learning_rate: float = 3e-3
    adapt_steps: int = 300
    adapt_learning_rate: float = 5e-3
    rank: int = 32
    fresh: bool = False
    tiny: bool = False

    def sized(self) -> "Quickstart":
        """These settings, or the smallest ones if `tiny`."""
        if not self.tiny:
            return self
        return dataclasses.replace(
            self,
            vocab_size=400,
            hidden_size=32,
            layers=2,
            sequence_length=32,
            batch_size=8,
            steps=8,
            adapt_steps=4,
            rank=4,
        )

    def run(self) -> bool:
        """Runs every stage that is not finished; False if a signal ended one early.

        Raises:
          FmjaxError: settings that cannot be used, or another run in the directory.
        """
        from fmjax.quickstart.stages import run

        return run(self)
