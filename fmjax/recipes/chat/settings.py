"""The settings of runs on conversations, as frozen dataclasses that the command line shows."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ChatExamples:
    """The files, and how they are read.

    Attributes:
      train: Examples to train on, .jsonl (.gz or not), .csv, .tsv or tfds:NAME. sft: rows with
        messages, conversations (ShareGPT), prompt and completion, or instruction, input and output
        (Alpaca). dpo: rows with prompt, chosen and rejected, texts or lists of messages.
      valid: Examples to measure on, in the same form. Without it, --valid-fraction of the training
        examples.
      valid_fraction: Share of the training examples held out where --valid is not given, 0 to 1.
      remove_overlap: Leave out training examples whose prompt is also among those to measure on;
        their number is reported either way.
      max_length: Tokens of an example at most, and of a row; what is beyond is cut off and counted.
    """

    train: str
    valid: str = ""
    valid_fraction: float = 0.05
    remove_overlap: bool = False
    max_length: int = 512


@dataclasses.dataclass(frozen=True)
class ChatOptimization:
    """AdamW and its schedule, and when a run ends. The best state is that of the least loss.

    Attributes:
      epochs: Passes over the training examples.
      steps: Updates in all; 0 goes by --epochs.
      batch_size: Rows of packed conversations (sft) or pairs of answers (dpo) in a batch, over all
        devices.
      learning_rate: Peak learning rate; 0 goes by task and method: 2e-5 (sft) and 1e-6 (dpo) for
        all weights, 4e-4 and 2e-5 with LoRA.
      schedule: After the warm-up: linear to 0, cosine to a tenth of the peak, or constant.
      warmup_fraction: Share of the updates that the learning rate rises in.
      weight_decay: Decoupled decay of matrices and embeddings; biases and norms have none.
      clip_norm: Bound on the global norm of the gradient; 0 for none.
      accumulate: Parts that a batch is cut into to save memory; the update stays the same.
      eval_every: Updates between evaluations; 0 for one at the end of each epoch.
      patience: Evaluations without a lower loss after which the run ends; 0 goes on.
      seed: Of initialisation, data order and dropout.
    """

    epochs: float = 1.0
    steps: int = 0
    batch_size: int = 16
    learning_rate: float = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    eval_every: int = 0
    patience: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Preference:
    """How preferences are learnt (direct preference optimisation).

    Attributes:
      beta: How dear it is to leave the reference, the model as it was.
      label_smoothing: Share of the preferences taken to be wrong, 0 to 0.5; of sigmoid only.
      loss: sigmoid is DPO's own, hinge ends at a margin of 1, ipo aims at a fixed distance and goes
        by the mean over an answer's tokens.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Answers to held-out prompts, before and after, shown at the end.

    Attributes:
      samples: Number of prompts; 0 for none.
      max_new_tokens: Tokens of an answer at most.
    """

    samples: int = 3
    max_new_tokens: int = 48
