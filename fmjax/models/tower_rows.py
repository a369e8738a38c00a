"""Rows of the weights maps of CLIP and SigLIP, whose layers bear the same names."""

from collections.abc import Sequence

from fmjax.convert import IDENTITY, TRANSPOSE, Row, Transform


class TowerRows:
    """Rows of one encoder.

    Args:
      name: "text_model" or "vision_model", the encoder's path and its name in the files of a model
        that has both.
      alone: the file is of this encoder only, where today's transformers leaves the name out;
        earlier files have it.
    """

    def __init__(self, name: str, alone: bool):
        self._name = name
        self._prefix = "" if alone else f"{name}."
        self._aliases = self._named if alone else None

    def _named(self, name: str) -> Sequence[str]:
        return [f"{self._name}.{name}"]

    def row(self, hf: str, path: str, transform: Transform = IDENTITY) -> Row:
        """One tensor, below the encoder."""
        full = f"{self._name}/{path}"
        return Row(self._prefix + hf, full, transform, aliases=self._aliases)

    def dense(self, hf: str, path: str) -> list[Row]:
        """A linear layer with a bias."""
        return [
            self.row(f"{hf}.weight", f"{path}/kernel", TRANSPOSE),
            self.row(f"{hf}.bias", f"{path}/bias"),
        ]

    def norm(self, hf: str, path: str) -> list[Row]:
        """A layer norm."""
        return [
            self.row(f"{hf}.weight", f"{path}/scale"),
            self.row(f"{hf}.bias", f"{path}/bias"),
        ]

    def table(self, name: str) -> Row:
        """An embedding table."""
        return self.row(f"embeddings.{name}.weight", f"{name}/embedding")

    def layers(self) -> list[Row]:
        """All layers."""
        hf, path = "encoder.layers.{layer}.", "layers/"
        rows = self.norm(f"{hf}layer_norm1", f"{path}attention_norm")
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
            rows += self.dense(f"{hf}self_attn.{theirs}_proj", f"{path}attention/{ours}_proj")
        rows += self.norm(f"{hf}layer_norm2", f"{path}mlp_norm")
        for name in ("fc1", "fc2"):
            rows += self.dense(f"{hf}mlp.{name}", f"{path}mlp/{name}")
        return rows


def plain(name: str, transform: Transform = IDENTITY) -> Row:
    """A tensor that stands beside the encoders: "logit_scale"."""
    return Row(name, name, transform)


def linear(name: str, bias: bool) -> list[Row]:
    """A linear layer that stands beside the encoders."""
    rows = [Row(f"{name}.weight", f"{name}/kernel", TRANSPOSE)]
    return [*rows, Row(f"{name}.bias", f"{name}/bias")] if bias else rows
