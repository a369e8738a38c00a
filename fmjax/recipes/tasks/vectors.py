"""Texts to vectors: the model without its head, pooled."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import fmjax
from fmjax import peft
from fmjax.data.tasks import eval_task_batches, text_features
from fmjax.nn.pooling import sentence_embeddings
from fmjax.recipes import vector_files
from fmjax.recipes.models import compute_dtype, parse_mesh, resolve_directory
from fmjax.recipes.tasks.embed import Embed
from fmjax.recipes.tasks.inference import Predictor, counting
from fmjax.recipes.tasks.inputs import check_sizes, read_inputs
from fmjax.recipes.tasks.sentences import SentenceModel
from fmjax.recipes.tasks.task import Reading

CHUNK = 1024


def write_vectors(settings: Embed) -> None:
    """Reads, embeds and writes; see `Embed`.

    Raises:
      FmjaxError: what cannot be read, or an output of an unknown kind; found before anything is
        written.
    """
    vector_files.check_suffix(settings.output)
    vector_files.check_place("--output", settings.output)
    mesh = parse_mesh(settings.mesh)
    start = resolve_directory(settings.model, heads=None)
    own = SentenceModel.of(settings.model, type(start.config), settings.pooling)
    longest = own.max_length if settings.max_length is None else settings.max_length
    check_sizes(settings.batch_size, longest, mesh)
    tables = list(read_inputs(settings.input, settings.text_column, CHUNK))
    for table in tables:
        table.require(settings.text_column, "--text-column")
    texts = [own.prompt + t for table in tables for t in table.texts(settings.text_column)]
    # The key is for a pooler on the first token, which embeddings do not use but some files lack.
    model, params = fmjax.from_pretrained(
        settings.model,
        dtype=compute_dtype(settings.dtype),
        mesh=mesh,
        override={"head": None},
        new_head=jax.random.key(0),
    )
    variables, room = {"params": params}, 0
    if settings.adapter is not None:
        spec, variables["adapter"] = peft.load(settings.adapter, model, params)
        room = getattr(spec, "num_virtual_tokens", 0)
    limit = Reading.of(start.tokenizer, model.config, longest, 0, room).max_length
    vectors, cut = embed_texts(
        model,
        variables,
        start.tokenizer,
        texts,
        pooling=own.pooling,
        normalize=own.normalize and not settings.keep_length,
        batch_size=settings.batch_size,
        max_length=limit,
        mesh=mesh,
    )
    rows = [row for table in tables for row in table.rows]
    vector_files.write_vectors(settings.output, rows, vectors)
    cuts = f"; {cut:,} cut at {limit} tokens" if cut else ""
    print(f"{settings.output}: {vectors.shape[0]:,} × {vectors.shape[1]:,} ({own.pooling}{cuts})")


def embed_texts(
    model: Any,
    variables: Mapping[str, Any],
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pooling: str,
    normalize: bool = True,
    batch_size: int = 32,
    max_length: int = 256,
    mesh: jax.sharding.Mesh,
    progress: bool = True,
) -> tuple[np.ndarray, int]:
    """Vectors f32 [texts, D] in the order of the texts, and how many texts were cut."""
    features = text_features(texts, tokenizer, max_length, token_types=False)
    cut = features.truncated
    batches = eval_task_batches(
        features.examples, batch_size, pad_id=tokenizer.pad_token_id or 0, max_length=max_length
    )
    predictor = Predictor(
        model.apply,
        lambda output, batch: sentence_embeddings(
            output.last_hidden_state, batch["attention_mask"], pooling, normalize
        ),
        mesh,
    )
    with counting("embedding", len(texts), progress) as advance:
        rows, _ = predictor(variables, batches, advance)
    return np.stack(rows), cut
