"""A model directory opened to look at images, and to read texts where it can.

Shapes: B images or texts, T tokens, N patches, D width of the vectors.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fmjax
from fmjax.core import logical
from fmjax.core.errors import ConfigError
from fmjax.data import Tokenizer, check_fits, load_tokenizer
from fmjax.data.encoding import encode_batch
from fmjax.data.images import ImageProcessor
from fmjax.evals import collect
from fmjax.hub import parse_config, read_config
from fmjax.parallel import DEFAULT_RULES, shard_batch
from fmjax.recipes.models import compute_dtype, parse_mesh
from fmjax.recipes.tasks.inference import counting
from fmjax.recipes.vision.reading import Read, pixel_batches

# Heads under which a model still has the vectors that it is known for.
_KEPT = (None, "projection")
CLASSIFIER = "image-classification"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model to look at images with.

    Attributes:
      model: the module.
      variables: for `model.apply`.
      processor: makes pixel values of images, as its directory says.
      tokenizer: of models that read texts too; else None.
      mesh: devices.
      batch_size: images or texts at once.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    processor: ImageProcessor
    tokenizer: Tokenizer | None
    mesh: jax.sharding.Mesh
    batch_size: int

    def look(
        self, pick: Callable[[Any, jax.Array], jax.Array], files: Sequence[Path], what: str
    ) -> tuple[Read, np.ndarray]:
        """(which files could be read, f32[read, …] of them).

        Args:
          pick: (the model's output, pixel_values) → [B, D].
          files: of images.
          what: is done, for the progress bar.

        Raises:
          DataError: images that the processor leaves in different sizes.
        """
        run = self._compiled(lambda apply, batch: pick(apply(**batch), batch["pixel_values"]))
        with counting(what, len(files)) as advance:
            read = Read()
            batches = pixel_batches(files, self.processor.pixels, self.batch_size, read, advance)
            first = next(batches, None)
            if first is None:  # nothing could be read: no vectors, of no width
                return read, np.zeros((0, 0), np.float32)
            return read, collect(run, itertools.chain([first], batches))[0]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """f32[texts, D] in the space of the images; texts that are too long are cut.

        Raises:
          ConfigError: a model that does not read texts.
        """
        if self.tokenizer is None:
            raise ConfigError(
                f"the model ({self.model.config.model_type}) does not read texts; give CLIP or "
                "SigLIP"
            )
        run = self._compiled(lambda apply, batch: apply(**batch).text_embeds)
        config = self.model.config.text_config
        rows = token_rows(self.tokenizer, texts, config.max_position_embeddings)

        def batches() -> Any:
            for start in range(0, len(rows), self.batch_size):
                ids = rows[start : start + self.batch_size]
                weights = np.arange(self.batch_size) < len(ids)
                # Rows that fill the batch up are copies.
                ids = ids[np.minimum(np.arange(self.batch_size), len(ids) - 1)]
                yield {"input_ids": ids, "example_weight": weights.astype(np.float32)}

        return collect(run, batches())[0]

    def _compiled(self, pick: Callable[[Any, Any], jax.Array]) -> Callable[[Any], jax.Array]:
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())

        @functools.partial(jax.jit, out_shardings=everywhere)
        def run(variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            with logical.use(self.mesh, DEFAULT_RULES):
                apply = functools.partial(self.model.apply, variables)
                return pick(apply, batch).astype(jnp.float32)

        def embed(batch: Mapping[str, Any]) -> jax.Array:
            inputs = {k: v for k, v in batch.items() if k != "example_weight"}
            return run(self.variables, shard_batch(inputs, self.mesh, DEFAULT_RULES))

        return embed


def open_encoder(
    directory: Path, *, mesh: str, dtype: str, batch_size: int, classifier: bool = False
) -> Encoder:
    """Opens a model directory.

    Args:
      directory: with preprocessor_config.json, and a tokenizer where the model reads texts.
      mesh, dtype, batch_size: as the flags.
      classifier: with its head for classes; else for vectors.

    Raises:
      FmjaxError: what cannot be read or used, a model that sees no images among it.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size} must be at least 1")
    devices = parse_mesh(mesh)
    row = jax.ShapeDtypeStruct((batch_size,), "int32")
    shard_batch({"--batch-size": row}, devices, DEFAULT_RULES)
    raw = read_config(directory)
    config = parse_config(raw, directory / "config.json")
    nested = hasattr(config, "vision_config")
    if not nested and not hasattr(config, "num_channels"):
        raise ConfigError(f"--model {directory}: {config.model_type} does not see images")
    processor = ImageProcessor.from_pretrained(directory)
    tokenizer = None
    if nested and config.head is None:
        tokenizer = load_tokenizer(directory)
        check_fits(tokenizer, config.text_config.vocab_size)
    # A classifier on CLIP has no other vectors than its patches'.
    bare = not classifier and config.head not in _KEPT and not nested
    model, params = fmjax.from_pretrained(
        directory,
        dtype=compute_dtype(dtype),
        mesh=devices,
        # The key is for a pooler that some files lack and `image_vectors` then does not use.
        **({"override": {"head": None}, "new_head": jax.random.key(0)} if bare else {}),
    )
    return Encoder(model, {"params": params}, processor, tokenizer, devices, batch_size)


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """i32[texts, length]: tokens, cut or filled up to the length that the model was trained at."""
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    rows = np.full((len(texts), length), pad, np.int32)
    for row, encoded in zip(rows, encode_batch(tokenizer, texts, None, length), strict=True):
        row[: len(encoded)] = encoded.ids
    return rows


def image_vectors(config: Any, pooling: str = "") -> Callable[[Any, jax.Array], jax.Array]:
    """(the model's output, pixel_values) → vectors [B, D].

    Args:
      config: of the model.
      pooling: of the last layer's tokens, "cls" the first one, "mean" the patches' mean; "" what
        the model is meant to be read by: the common space with texts, its own pooling, else the
        first token. The pooler that transformers puts on ViT, which most files lack, does not
        count.

    Raises:
      ConfigError: a pooling of tokens for a model that has none.
    """
    if pooling and not hasattr(getattr(config, "vision_config", config), "patch_size"):
        raise ConfigError(f"--pooling {pooling}: {config.model_type} has no tokens; leave it out")

    def pick(output: Any, pixels: jax.Array) -> jax.Array:
        tower = getattr(output, "vision_model_output", None) or output
        if not pooling:
            if getattr(output, "image_embeds", None) is not None:
                return output.image_embeds
            pooled = getattr(output, "pooler_output", None)
            dense = config.model_type == "vit" and config.pooling is None
            if pooled is not None and not dense:
                return pooled.reshape(len(pooled), -1)
        tokens = tower.last_hidden_state
        whole = pooling or getattr(config, "pooling", None) or "cls"
        before = tokens.shape[1] - patches(config, pixels.shape)
        if whole == "mean" or not before:
            return tokens[:, before:].astype(jnp.float32).mean(1)
        return tokens[:, 0]

    return pick


def patches(config: Any, shape: Sequence[int]) -> int:
    """Number of patches of pixel_values [B, H, W, C]."""
    size = getattr(config, "vision_config", config).patch_size
    p, q = (size, size) if isinstance(size, int) else size
    return (shape[1] // p) * (shape[2] // q)
