"""`fmjax train --objective …`: pretraining on images."""

import dataclasses
from pathlib import Path

from fmjax.recipes.options import Hardware
from fmjax.recipes.vision.settings import (
    Heads,
    ImageOptimization,
    Images,
    Objective,
    Probing,
    Views,
)


@dataclasses.dataclass(frozen=True)
class PretrainImages:
    """Pretrain an image encoder, or one of images and one of texts together.

    The run's directory gets checkpoints, a log (metrics.jsonl) and in the end `model`, which
    transformers loads. The same command goes on where a stopped run was. Along the way what was
    learnt is measured: by the nearest neighbours of held-out pictures where there are labels, by
    retrieval in both directions where there are captions.

    Attributes:
      objective: supervised, labels of pictures; mae, pixels of hidden patches (vit_mae); simclr,
        two views of a picture find each other; dino and dinov2, a student agrees with the average
        of itself on crops; clip and siglip, pictures and captions find each other.
      model: A published size such as vit-s16, mae-b16, dinov2-s14, resnet-50, clip-vit-b32, or a
        config.json: random weights. A model directory: its weights.
      out: Directory of the run.
      tokenizer: Directory of the tokenizer, for clip and siglip; without it, the one beside the
        model. A published size gets this tokenizer's vocabulary.
      override: Changes of the architecture, such as num_hidden_layers=8 image_size=96; of CLIP's
        encoders as in vision_config.hidden_size=256.
    """

    objective: Objective
    model: str
    out: Path
    data: Images
    tokenizer: str = ""
    override: tuple[str, ...] = ()
    views: Views = Views()
    heads: Heads = Heads()
    optimization: ImageOptimization = ImageOptimization()
    hardware: Hardware = Hardware()
    probing: Probing = Probing()

    def run(self) -> bool:
        """Trains, measures and exports.

        Returns:
          Whether the run is complete; False after a SIGTERM, which saved a checkpoint.

        Raises:
          FmjaxError: settings or files that cannot be used; found before anything is written.
        """
        from fmjax.recipes.vision.run import Run

        return Run.open(self).train()
