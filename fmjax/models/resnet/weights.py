"""Weights map of ResNet: names and layouts of `ResNetModel` and `ResNetForImageClassification`."""

from fmjax.convert import TRANSPOSE, Permute, Row
from fmjax.models.resnet.config import ResNetConfig
from fmjax.models.vision_rows import prefixed

# [out, in, height, width] in the files, [height, width, in, out] here.
_KERNEL = Permute((2, 3, 1, 0))


def rows(config: ResNetConfig) -> list[Row]:
    """File tensor ↔ parameter, for exactly the parameters that `config` gives the model."""
    prefix = "" if config.head is None else "resnet."
    found = _conv(f"{prefix}embedder.embedder", "embedder")
    before = config.embedding_size
    for stage, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        for block in range(depth):
            hf = f"{prefix}encoder.stages.{stage}.layers.{block}"
            path = f"stage_{stage}/block_{block}"
            halves = block == 0 and (stage > 0 or config.downsample_in_first_stage)
            if before != size or halves:
                found += _conv(f"{hf}.shortcut", f"{path}/shortcut")
            for conv in range(2 if config.layer_type == "basic" else 3):
                found += _conv(f"{hf}.layer.{conv}", f"{path}/conv_{conv}")
            before = size
    # A classifier's files are read without its head, and a bare model's under a new one.
    found = prefixed(found, "resnet.")
    if config.head is not None:
        found += [
            Row("classifier.1.weight", "classifier/kernel", TRANSPOSE),
            Row("classifier.1.bias", "classifier/bias"),
        ]
    return found


def _conv(hf: str, path: str) -> list[Row]:
    norm, at = f"{hf}.normalization", f"{path}/normalization"
    return [
        Row(f"{hf}.convolution.weight", f"{path}/convolution/kernel", _KERNEL),
        Row(f"{norm}.weight", f"{at}/scale"),
        Row(f"{norm}.bias", f"{at}/bias"),
        Row(f"{norm}.running_mean", f"{at}/running_mean"),
        Row(f"{norm}.running_var", f"{at}/running_var"),
        # Frameworks without such a count leave it out, and it changes no output.
        Row(
            f"{norm}.num_batches_tracked", f"{at}/num_batches_tracked", integer=True, optional=True
        ),
    ]
