"""`fmjax embed --images`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class EmbedImages:
    """Turn images into vectors, one an image, for search and clustering.

    Attributes:
      model: Model directory: a vision encoder, CLIP or SigLIP.
      images: Folders, which are searched to the bottom, and image files.
      output: File to write: .npy holds float32 [images, width], and a file beside it with the
        ending .txt their names; .parquet columns "image" and "embedding".
      pooling: First token (cls) or mean of the patches. Without it, what the model is trained to
        be read by: the common space with texts, its own pooling, else the first token.
      keep_length: Leave the vectors as long as they are; otherwise their length is 1, and a dot
        product is the cosine.
      batch_size: Images in a batch, over all devices.
      mesh: Devices by axis, such as data=4. Without it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
    """

    model: Path
    images: tuple[Path, ...]
    output: Path
    pooling: Literal["", "cls", "mean"] = ""
    keep_length: bool = False
    batch_size: int = 32
    mesh: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def run(self) -> None:
        from fmjax.recipes.vision.embedding import write_image_vectors

        write_image_vectors(self)
