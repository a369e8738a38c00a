"""The published recipes of pretraining on ImageNet and on image–text pairs, one for each objective.

Settings are those of the papers, for a folder of classes, a TFDS set or shards of your own; what a
paper's figure is of stands beside it. They were not run here.

- Command: python experiments/pretrain_imagenet.py --method mae-b16 --images tfds:imagenet2012
- Cost: see the table. FLOPs are those of the traced step's matrix products and convolutions,
  augmentation included, without recomputation; hours are on a v5e-8 at an assumed 40 % of its bf16
  peak.
- Figure: see the table, on ImageNet's validation pictures.

  method      pictures  epochs   batch   FLOPs  hours  figure of the paper
  vit-s16       1.28 M     300    1024  1.1e19      5  79.8 top-1 (arXiv:2012.12877)
  mae-b16       1.28 M     800    4096  6.0e19     26  83.6 top-1, fine-tuned (1600 epochs)
  simclr-r50    1.28 M     800    4096  5.9e19     26  69.1 linear (1000 epochs)
  dino-s16      1.28 M     100     512  1.5e19      6  69.3 kNN, 74.0 linear
  dinov2-s14    1.28 M     100    1024  3.1e19     14  none on this set
  clip-b32       400 M      32  32,768  5.7e20    250  63.3 zero-shot
"""

import sys
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.recipes import Hardware, PretrainImages
from fmjax.recipes.vision import Heads, ImageOptimization, Images, Probing, Views

PICTURES, PAIRS = 1_281_167, 400_000_000


def recipe(
    objective: str,
    model: str,
    epochs: int,
    batch_size: int,
    images: str = "tfds:imagenet2012",
    **fields,
) -> PretrainImages:
    """A run of so many passes over the pictures."""
    examples = PAIRS if objective == "clip" else PICTURES
    optimization = fields.pop("optimization", {})
    return PretrainImages(
        objective=objective,
        model=model,
        out=Path(f"runs/imagenet/{objective}"),
        data=Images(images=images, batch_size=batch_size, workers=32),
        optimization=ImageOptimization(steps=epochs * examples // batch_size, **optimization),
        hardware=Hardware(remat="full"),
        probing=Probing(eval_every=5000, checkpoint_every=2500),
        **fields,
    )


VIT_S16 = recipe(
    "supervised",
    "vit-s16",
    300,
    1024,
    views=Views(rand_augment=True, mixup=0.8, cutmix=1.0),
    override=("drop_path_rate=0.1",),
)
MAE_B16 = recipe("mae", "mae-b16", 800, 4096)
# Ten epochs of warm-up, however long the run.
SIMCLR_R50 = recipe(
    "simclr", "resnet-50", 800, 4096, optimization={"warmup": 10 * PICTURES // 4096}
)
DINO_S16 = recipe(
    "dino",
    "vit-s16",
    100,
    512,
    heads=Heads(prototypes=65536),
    override=("drop_path_rate=0.1", "layer_norm_eps=1e-6"),
)
DINOV2_S14 = recipe("dinov2", "dinov2-s14", 100, 1024, heads=Heads(prototypes=65536))
CLIP_B32 = recipe(
    "clip",
    "clip-vit-b32",
    32,
    32768,
    "pairs/*.tar",
    tokenizer="clip-tokenizer",
    optimization={"warmup": 2000},
)
METHODS = {
    "vit-s16": VIT_S16,
    "mae-b16": MAE_B16,
    "simclr-r50": SIMCLR_R50,
    "dino-s16": DINO_S16,
    "dinov2-s14": DINOV2_S14,
    "clip-b32": CLIP_B32,
}

if __name__ == "__main__":
    sys.exit(experiment(MAE_B16, __doc__, methods=METHODS))
