"""`fmjax classify`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Classify:
    """Say what images show: by a fine-tuned classifier, or by any labels with CLIP or SigLIP.

    Prints one JSON object a line: image, label, score, and the --top scores by label.

    Attributes:
      model: Model directory with a head for classes of images; or CLIP or SigLIP, with --labels.
      images: Folders, which are searched to the bottom, and image files.
      labels: What the images may show, such as "a cat" "a dog": a model of images and texts
        compares them with each image. A classifier has labels of its own.
      templates: Sentences around a label, in which {} stands for it; the mean of all of them is
        compared. Without them, a few that suit photographs and drawings.
      top: How many scores each image gets.
      measure: The images lie in folders named like their labels: print the accuracy too.
      output: File to write; without it, standard output.
      html: File of a page that shows the images under the labels that they got.
      batch_size: Images in a batch, over all devices.
      mesh: Devices by axis, such as data=4. Without it all devices split the batch.
      dtype: Of the computation: auto is float32 on CPUs and bfloat16 on accelerators.
    """

    model: Path
    images: tuple[Path, ...]
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    top: int = 5
    measure: bool = False
    output: Path | None = None
    html: Path | None = None
    batch_size: int = 32
    mesh: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def run(self) -> None:
        from fmjax.recipes.vision.classifying import classify

        classify(self)
