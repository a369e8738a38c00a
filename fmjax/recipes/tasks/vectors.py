"""Texts to vectors: the model without its head, pooled."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fmjax
from fmjax import peft
from fmjax.convert import read_json
from fmjax.core.errors import ConfigError
from fmjax.data.tasks import eval_task_batches, text_features
from fmjax.nn.pooling import sentence_embeddings
from fmjax.recipes import vector_files
from fmjax.recipes.models import compute_dtype, parse_mesh, resolve_directory
from fmjax.recipes.tasks.embed import Embed
from fmjax.recipes.tasks.inference import Predictor, counting
from fmjax.recipes.tasks.inputs import check_sizes, read_inputs
from fmjax.recipes.tasks.task import Reading

POOLING = Path("1_Pooling") / "config.json"
# sentence-transformers' names of the poolings.
_MODES = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
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
    check_sizes(settings.batch_size, settings.max_length, mesh)
    start = resolve_directory(settings.model, heads=None)
    tables = list(read_inputs(settings.input, settings.text_column, CHUNK))
    for table in tables:
        table.require(settings.text_column, "--text-column")
    texts = [text for table in tables for text in table.texts(settings.text_column)]
    pooling = settings.pooling or own_pooling(settings.model, type(start.config))
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
    limit = Reading.of(start.tokenizer, model.config, settings.max_length, 0, room).max_length
    vectors, cut = embed_texts(
        model,
        variables,
        start.tokenizer,
        texts,
        pooling=pooling,
        normalize=not settings.keep_length,
        batch_size=settings.batch_size,
        max_length=limit,
        mesh=mesh,
    )
    rows = [row for table in tables for row in table.rows]
    vector_files.write_vectors(settings.output, rows, vectors)
    cuts = f"; {cut:,} cut at {limit} tokens" if cut else ""
    print(f"{settings.output}: {vectors.shape[0]:,} × {vectors.shape[1]:,} ({pooling}{cuts})")


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


def own_pooling(directory: Path, config: type) -> str:
    """What a sentence-transformers directory states, else mean for encoders, last for decoders.

    Raises:
      ConfigError: a pooling that fmjax does not have.
    """
    file = directory / POOLING
    if not file.is_file():
        return "last" if config.head == "causal-lm" else "mean"
    stated = read_json(file)
    modes = [name for name, key in _MODES.items() if stated.get(key)]
    others = [k for k, on in stated.items() if k.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or len(others) != 1:
        raise ConfigError(
            f"{file} pools by {', '.join(others) or 'nothing'}; choose one with --pooling: "
            f"{', '.join(_MODES)}"
        )
    return modes[0]


def write_pooling(directory: Path, width: int, pooling: str, max_length: int) -> None:
    """The files that make a model directory one of sentence-transformers."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    stated = {key: name == pooling for name, key in _MODES.items()}
    content = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        str(POOLING): {"word_embedding_dimension": width, **stated},
    }
    for name, value in content.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
