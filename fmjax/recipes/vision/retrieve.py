"""`fmjax retrieve`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Retrieve:
    """Search a folder of images, by texts or by other images.

    The vectors of the images are kept in an index, so that a second search only reads files that
    are new or have changed.

    Attributes:
      model: Model directory: CLIP or SigLIP; for --image any vision encoder.
      images: Folder that is searched to the bottom.
      text: What to look for, such as "a red car"; several texts are several searches.
      image: Image files to find the like of; the file itself is left out.
      top: How many images a search finds.
      html: File of a page that shows what was found.
      index: File of the index; without it, a hidden file in the folder.
      json: Print JSON lines with query, rank, image and score.
      batch_size: Images in a batch, over all devices.
      mesh: Devices by axis, such as data=4. Without it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
    """

    model: Path
    images: Path
    text: tuple[str, ...] = ()
    image: tuple[Path, ...] = ()
    top: int = 9
    html: Path | None = None
    index: Path | None = None
    json: bool = False
    batch_size: int = 32
    mesh: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def run(self) -> None:
        from fmjax.recipes.vision.searching import retrieve

        retrieve(self)
