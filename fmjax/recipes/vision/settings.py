"""The settings of runs on images; importing this module imports no JAX."""

import dataclasses
from typing import Literal

Objective = Literal["supervised", "mae", "simclr", "dino", "dinov2", "clip", "siglip"]


@dataclasses.dataclass(frozen=True)
class Images:
    """The pictures, and how they become batches.

    Attributes:
      images: What to train on: a set that comes with a package (digits, openmoji, photographs), a
        folder (with a folder for each class, where labels are needed), tfds:NAME, a quoted glob of
        .tar shards, or a .tsv or .jsonl of image paths and captions.
      eval_images: Held-out pictures, named like --images, none of which may be trained on. Without
        it, what the set itself holds out, else --eval-fraction of the pictures.
      eval_fraction: Share of the pictures held out, 0 to 1; always the same pictures.
      batch_size: Pictures in a batch, over all devices and accumulated parts together.
      image_size: Side, in pixels, of what the model sees; without it, of the model's config.
      stored_size: Longer side, in pixels, that pictures are scaled down to before views are cut out
        of them; more keeps detail in small crops, and the shorter side may be below --image-size.
        Without it 8/7 of --image-size.
      caption_length: Tokens of a caption at most; without it, of the model's config.
      workers: Threads that decode pictures.
      broken: What happens to a picture that cannot be read: skip (and count) it, or end the run.
    """

    images: str
    eval_images: str = ""
    eval_fraction: float = 0.1
    batch_size: int = 256
    image_size: int = 0
    stored_size: int = 0
    caption_length: int = 0
    workers: int = 8
    broken: Literal["skip", "error"] = "skip"


@dataclasses.dataclass(frozen=True)
class Views:
    """What is done to a picture before the model sees it, each time anew, on the device.

    Attributes:
      flip: Mirror half of the views; not for pictures in which left and right differ, such as
        digits and letters. Those of clip and siglip never are, as captions tell left from right.
      color: Strength of the changes of colour of simclr, dino and dinov2, of which the published
        is 1; 0 for none, shades of grey and inverted tones included.
      blur: Blur views as simclr and dino do; small pictures go without.
      solarize: Invert the bright tones of some views as dino and dinov2 do; not where that makes
        another picture of it.
      smallest_crop: Share of the picture that a crop shows at least. Without it as published: 0.08
        (supervised, simclr), 0.2 (mae), 0.4 (dino), 0.32 (dinov2), 0.9 (clip, siglip).
      local_crops: Small crops beside the two large ones; dino and dinov2 only.
      local_size: Side of the small crops in pixels, whole patches. Without it about 0.43 of
        --image-size.
      rand_augment: RandAugment on each view, with two operations of magnitude 9.
      mixup: Parameter of the Beta distribution that two pictures and their labels are mixed by; 0
        for none, 0.8 is usual; supervised only.
      cutmix: The same of pasting a piece of one picture into another; 1 is usual; supervised only.
    """

    flip: bool = True
    color: float = 1.0
    blur: bool = True
    solarize: bool = True
    smallest_crop: float | None = None
    local_crops: int = 8
    local_size: int = 0
    rand_augment: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclasses.dataclass(frozen=True)
class Heads:
    """What stands on the encoder while it learns, and the figures of the objective.

    Attributes:
      label_smoothing: Share of a label that is spread over all classes; supervised only.
      projection: Width of the vectors that simclr compares.
      hidden: Width of the layers of the heads of simclr, dino and dinov2.
      head_range: Standard deviation of the first weights of the head of dino and dinov2, the
        published 0.02; a narrow head wants more, or all pictures look alike to it.
      prototypes: Outputs of the head of dino and dinov2; the papers' are 65536 and 131072.
      temperature: Of simclr's softmax.
      teacher_momentum: Of the teacher's weights at the start, which goes to 1; dino, dinov2. The
        published 0.996 and 0.994 without it; small batches want more, 0.9995 at 256.
      teacher_temperature: Of the teacher's softmax after its warm-up from 0.04 or below; dino,
        dinov2. Without it the published 0.04 and 0.07; long runs of dino gain from 0.07 too.
      frozen_head_steps: Updates before the last layer of the head of dino and dinov2 is trained;
        without it the first hundredth of the run, an epoch of a hundred.
    """

    label_smoothing: float = 0.1
    projection: int = 128
    hidden: int = 2048
    head_range: float = 0.02
    prototypes: int = 4096
    temperature: float = 0.1
    teacher_momentum: float | None = None
    teacher_temperature: float | None = None
    frozen_head_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class ImageOptimization:
    """The optimizer and its schedule. What is not given is as in the objective's paper.

    Attributes:
      steps: Updates in all.
      learning_rate: Peak learning rate; as published it grows with the batch for all but clip and
        siglip.
      warmup: Updates of linear warm-up, before a cosine to 0. Without it a share of --steps.
      weight_decay: Decoupled decay of matrices; what is not given grows during a run of dino and
        dinov2.
      beta2: Decay of AdamW's second moment.
      optimizer: AdamW, or LARS for large batches of convolutional networks, which auto takes for
        simclr with a ResNet.
      clip_norm: Bound on the global norm of the gradient; 0 for none.
      accumulate: Parts that a batch is cut into to save memory: the same update, up to what is
        drawn by chance. clip and siglip embed the parts twice and compare all (gradient cache);
        simclr, dino and dinov2 cannot be cut.
      seed: Of initialisation, data order and augmentation.
    """

    steps: int = 1000
    learning_rate: float | None = None
    warmup: int | None = None
    weight_decay: float | None = None
    beta2: float | None = None
    optimizer: Literal["auto", "adamw", "lars"] = "auto"
    clip_norm: float | None = None
    accumulate: int = 1
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Probing:
    """How what was learnt is measured, and how often the run saves and logs, in steps.

    Attributes:
      eval_every: Steps between evaluations; 0 for none but the last.
      neighbours: Of the vote by the nearest training pictures, where there are labels.
      features: By what pictures are compared: the pooling that the objective trains (auto), the
        class token, the mean of the patches, or all patches side by side, which keeps where things
        are.
      whiten: Principal components of the training pictures' features that all are brought to before
        they are compared, with one variance on each; 0 compares them as they are.
      bank: Training pictures that are compared with at most.
      held_out: Held-out pictures that are measured on at most.
      checkpoint_every: Steps between checkpoints. One is always written at the end and on
        SIGTERM.
      keep: Newest checkpoints that are kept.
      log_every: Steps between lines of the log.
      tensorboard: Also write TensorBoard event files.
    """

    eval_every: int = 500
    neighbours: int = 20
    features: Literal["auto", "cls", "mean", "patches"] = "auto"
    whiten: int = 0
    bank: int = 50_000
    held_out: int = 10_000
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 10
    tensorboard: bool = False
