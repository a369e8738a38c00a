"""The settings of task runs, as frozen dataclasses that the command line shows."""

import dataclasses
from typing import Literal

Problem = Literal["single", "multi", "regression"]


@dataclasses.dataclass(frozen=True)
class Examples:
    """The task's files, and how they are read.

    Attributes:
      train: Examples to train on: .tsv, .csv or .jsonl (.gz or not) for classification and
        embedding, a CoNLL-style file or .jsonl for tagging, SQuAD-style .json or .jsonl for qa,
        tfds:NAME, or the shipped movie_reviews.
      valid: Examples to measure on, in the same form. Without it, --valid-fraction of the training
        examples, with every class in its share.
      valid_fraction: Share of the training examples held out where --valid is not given, 0 to 1.
      text_column: Column of the text (classification), of the words (tagging; a number counts from
        0), or of the first text of a pair (embedding).
      pair_column: Column of a second text: of sentence-pair classification, or of what belongs to
        the first text (embedding).
      label_column: Column of the label (classification), of the tags (tagging), or of the
        similarity score (embedding).
      negative_column: Column of a text that does not belong to the first (embedding).
      problem: Of classification: one label each, several (separated by |), or a number.
      scheme: Of tags: found out from the file, or one of BIO, IOB1, BIOES, plain.
      remove_overlap: Leave out training examples whose text is also among those to measure on;
        their number is reported either way.
      max_length: Tokens of an example at most. Longer texts are cut and counted; contexts of
        questions and sentences to tag are read in windows instead.
      stride: Tokens that neighbouring windows share.
    """

    train: str
    valid: str = ""
    valid_fraction: float = 0.1
    text_column: str = ""
    pair_column: str = ""
    label_column: str = ""
    negative_column: str = ""
    problem: Problem = "single"
    scheme: str = ""
    remove_overlap: bool = False
    max_length: int = 128
    stride: int = 64


@dataclasses.dataclass(frozen=True)
class TaskOptimization:
    """AdamW and its schedule, and when a run ends.

    Attributes:
      epochs: Passes over the training examples.
      steps: Updates in all; 0 goes by --epochs.
      batch_size: Examples in a batch, over all devices.
      learning_rate: Peak learning rate; 0 goes by the method: 5e-5 for full, 1e-3 for LoRA's kind
        and ptuning, 1e-2 for prefix and ia3, 3e-2 for prompt.
      schedule: After the warm-up: linear to 0, cosine to a tenth of the peak, or constant.
      warmup_fraction: Share of the updates that the learning rate rises in.
      layer_decay: Factor of the learning rate from each layer to the one below it; 1 for none.
      weight_decay: Decoupled decay of matrices and embeddings; biases and norms have none.
      clip_norm: Bound on the global norm of the gradient; 0 for none.
      accumulate: Parts that a batch is cut into to save memory; the update stays the same.
      label_smoothing: Share of the target that is spread over all labels, 0 to 1.
      balance: Weight classes (of classification, one label each) by the inverse of their number.
      temperature: Of the in-batch contrastive loss (embedding).
      eval_every: Updates between evaluations; 0 for one at the end of each epoch.
      patience: Evaluations without a better metric after which the run ends; 0 goes on.
      metric: That the best checkpoint is chosen by; without it, the task's own.
      seed: Of initialisation, data order and dropout.
    """

    epochs: float = 3.0
    steps: int = 0
    batch_size: int = 32
    learning_rate: float = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = 0.1
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    label_smoothing: float = 0.0
    balance: bool = False
    temperature: float = 0.05
    eval_every: int = 0
    patience: int = 0
    metric: str = ""
    seed: int = 0
