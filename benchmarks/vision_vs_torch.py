"""Vision models against PyTorch on the same shapes: a pair of processes that take turns.

    python benchmarks/vision_vs_torch.py
    python benchmarks/vision_vs_torch.py --case clip --rounds 9

How it is measured stands in `pairs.py`. Needs the `test` extra (torch, transformers). Weights and
pictures are random: only shapes matter.
"""

from collections.abc import Callable
from typing import Any

from pairs import main, stepping, torch_stepping

LABELS = 1000
SIDE = 224
WORDS = 77
CLIP_VOCABULARY, CLIP_END = 49408, 49407

# Case → rows of its batch.
ROWS = {"vit": 8, "clip": 16}
CASES = {
    "vit": ("ViT-B/16 training step, batch 8 × 224 × 224, f32", "s", 1.0, 1.0),
    "clip": ("CLIP ViT-B/32 training step, batch 16, 77 tokens, f32", "s", 1.0, 1.0),
}


def fmjax_side(case: str) -> tuple[Callable[[], Any], float]:
    import jax

    import fmjax
    from fmjax.models.registry import presets
    from fmjax.objectives import ContrastiveImageText, ImageClassification
    from fmjax.train import adamw, make_step

    rows = ROWS[case]
    batch = {"pixel_values": jax.random.normal(jax.random.key(1), (rows, SIDE, SIDE, 3))}
    if case == "vit":
        config = presets()["vit-b16"].replace(
            head="image-classification", id2label=tuple(f"LABEL_{i}" for i in range(LABELS))
        )
        objective = ImageClassification()
        batch["labels"] = jax.random.randint(jax.random.key(2), (rows,), 0, LABELS)
    else:
        config, objective = presets()["clip-vit-b32"], ContrastiveImageText()
        batch["input_ids"] = captions(jax.numpy, rows)
        batch["attention_mask"] = jax.numpy.ones((rows, WORDS), "int32")
    model = fmjax.build(config, remat="dots")
    variables = {"params": fmjax.init_params(model, jax.random.key(0))}
    return stepping(make_step(model, objective, adamw(1e-4)), variables, batch)


def captions(numpy: Any, rows: int) -> Any:
    """Ids [rows, WORDS], all different, each with its end at the end."""
    ids = numpy.arange(rows * WORDS).reshape(rows, WORDS) % (CLIP_END - 1)
    return numpy.concatenate([ids[:, :-1], numpy.full((rows, 1), CLIP_END)], 1)


def torch_side(case: str) -> tuple[Callable[[], Any], None]:
    """The same work as a user of PyTorch writes it."""
    import numpy
    import torch
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    rows = ROWS[case]
    pixels = torch.randn(rows, 3, SIDE, SIDE)
    if case == "vit":
        model = ViTForImageClassification(ViTConfig(num_labels=LABELS))
        labels = torch.randint(0, LABELS, (rows,))
        return torch_stepping(model, lambda: model(pixel_values=pixels, labels=labels).loss), None
    model = CLIPModel(CLIPConfig())
    ids = torch.tensor(captions(numpy, rows))
    mask = torch.ones_like(ids)
    return torch_stepping(
        model,
        lambda: (
            model(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True).loss
        ),
    ), None


if __name__ == "__main__":
    main(__doc__.splitlines()[0], CASES, fmjax_side, torch_side)
