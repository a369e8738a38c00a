"""CLIP from scratch on emoji: pictures and their names find each other.

3,520 drawings of OpenMoji, 72 × 72 pixels, with their Unicode names and aliases; 307 are held out,
no motif of which was seen in another skin tone, sex or direction. A tokenizer is trained on the
names too.

- Command: python experiments/clip_openmoji.py   (needs pip install -e '.[images]')
- Cost: 400 steps of 128 pairs, about 6 minutes on 2 CPU cores.
- Figure: of 307 held-out emoji, R@10 0.277 (0.228 to 0.323) from picture to name and 0.293 (0.244
  to 0.345) from name to picture, where chance is 0.033.
"""

import sys
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.recipes import PretrainImages
from fmjax.recipes.vision import ImageOptimization, Images, Probing, Views

TOKENIZER = Path("runs/tokenizer-openmoji")

CLIP = PretrainImages(
    objective="clip",
    model="clip-vit-b32",
    override=(
        "projection_dim=128",
        "vision_config.image_size=64",
        "vision_config.patch_size=8",
        "vision_config.hidden_size=128",
        "vision_config.intermediate_size=512",
        "vision_config.num_hidden_layers=4",
        "vision_config.num_attention_heads=4",
        "text_config.hidden_size=128",
        "text_config.intermediate_size=512",
        "text_config.num_hidden_layers=3",
        "text_config.num_attention_heads=4",
        "text_config.max_position_embeddings=24",
    ),
    tokenizer=str(TOKENIZER),
    out=Path("runs/clip_openmoji"),
    data=Images(images="openmoji", batch_size=128, stored_size=72),
    views=Views(smallest_crop=0.6),
    optimization=ImageOptimization(steps=400, learning_rate=1e-3, clip_norm=1.0),
    probing=Probing(eval_every=100, checkpoint_every=100),
)


def run(options: PretrainImages) -> bool:
    """Trains the tokenizer too where it is missing."""
    if options.tokenizer == str(TOKENIZER) and not TOKENIZER.exists():
        from fmjax.data import train_clip_tokenizer
        from fmjax.data.images import caption_table, open_images

        texts, _ = caption_table(open_images("openmoji", "train"))
        train_clip_tokenizer(texts, TOKENIZER, 1000)
    return options.run()


if __name__ == "__main__":
    sys.exit(experiment(CLIP, __doc__, run))
