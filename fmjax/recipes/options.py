"""The settings of runs, as frozen dataclasses that the command line shows and experiments compose.

The text below each field is the field's `--help`. Importing this module imports no JAX.
"""

import dataclasses
from typing import Literal

Schedule = Literal["cosine", "wsd", "linear", "constant"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Remat = Literal["none", "full", "dots", "attention"]


@dataclasses.dataclass(frozen=True)
class Data:
    """The text, and how it becomes batches.

    Attributes:
      data: Text to train on, one or several of: a corpus that ships with fmjax (kjv,
        movie_reviews); a .txt or .jsonl file, .gz or not, or a quoted glob of them; tfds:NAME;
        the directory of a prepared TFDS data set.
      weights: Share of rows from each of --data, in order; any scale. Without it all documents
        count alike.
      eval_data: Held-out text, named like --data. Without it: the validation split of corpora and
        TFDS data sets, and --eval-fraction of the documents of files.
      eval_fraction: Share of documents held out from files, 0 to 1; always the same documents.
      text_field: Field of JSON lines and TFDS examples that holds the text.
      split_by: What is one document in a .txt file: text between blank lines, a line, or the
        file.
      batch_size: Rows in a batch, over all devices and accumulated parts together.
      sequence_length: Tokens in a row; documents are packed into rows and do not see each other.
    """

    data: tuple[str, ...]
    weights: tuple[float, ...] = ()
    eval_data: tuple[str, ...] = ()
    eval_fraction: float = 0.05
    text_field: str = "text"
    split_by: Literal["document", "line", "file"] = "document"
    batch_size: int = 16
    sequence_length: int = 512


@dataclasses.dataclass(frozen=True)
class Optimization:
    """AdamW and its schedule.

    Attributes:
      steps: Updates in all.
      learning_rate: Peak learning rate.
      schedule: After the warm-up: cosine to a tenth of the peak, wsd (stable, then linear to 0
        over the last tenth), linear to 0, or constant.
      warmup: Updates of linear warm-up.
      weight_decay: Decoupled decay of matrices and embeddings; biases and norms have none.
      beta2: Decay of AdamW's second moment.
      clip_norm: Bound on the global norm of the gradient; 0 for none.
      accumulate: Parts that a batch is cut into to save memory; the update stays the same.
      z_loss: Weight of the squared log-partition, which keeps logits small; 1e-4 for long bf16
        runs.
      seed: Of initialisation, data order and dropout.
    """

    steps: int = 1000
    learning_rate: float = 3e-4
    schedule: Schedule = "cosine"
    warmup: int = 0
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip_norm: float = 1.0
    accumulate: int = 1
    z_loss: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Where and how the maths runs.

    Attributes:
      mesh: Devices by axis, such as data=2,fsdp=4,tensor=2; one may be -1 (what is left). Without
        it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators. Trained
        weights and optimizer state are float32 always.
      remat: What the backward pass recomputes to save memory: nothing, whole layers, all but
        matmuls, or attention.
    """

    mesh: str = ""
    dtype: DType = "auto"
    remat: Remat = "none"


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often a run evaluates and saves, in steps.

    Attributes:
      eval_every: Steps between evaluations on the held-out text; 0 for none.
      eval_batches: Batches of an evaluation at most.
      checkpoint_every: Steps between checkpoints. One is always written at the end and on
        SIGTERM.
      keep: Newest checkpoints that are kept.
      log_every: Steps between lines of the log.
      tensorboard: Also write TensorBoard event files.
    """

    eval_every: int = 100
    eval_batches: int = 20
    checkpoint_every: int = 200
    keep: int = 2
    log_every: int = 10
    tensorboard: bool = False
