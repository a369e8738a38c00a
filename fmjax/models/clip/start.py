"""How CLIP's parameters start, as in OpenAI's code.

Matrices that write into the residual stream are smaller, by 1 / √(2 L). (In transformers the sizes
of attention's input and output projections are exchanged.)
"""

import flax.linen as nn

from fmjax.models.clip.config import CLIPTextConfig, CLIPVisionConfig
from fmjax.models.towers import Initializers

normal = nn.initializers.normal


def layers(config: CLIPTextConfig | CLIPVisionConfig) -> Initializers:
    """Of the layers of one encoder."""
    factor, D, L = config.initializer_factor, config.hidden_size, config.num_hidden_layers
    return Initializers(
        qkv=normal(factor * D**-0.5),
        mlp=normal(factor * (2 * D) ** -0.5),
        residual=normal(factor * D**-0.5 * (2 * L) ** -0.5),
    )
