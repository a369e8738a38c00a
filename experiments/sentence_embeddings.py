"""Sentence embeddings: verses that follow each other come to lie near each other.

Contrastive learning without a label: a sentence of the King James Bible and the one after it are a
pair, all others in the batch are not. With files of your own (columns anchor and positive, also
negative; or sentence1, sentence2 and score): --train FILE --valid FILE.

- Command: python experiments/sentence_embeddings.py --model DIR   (any BERT-like directory)
- Cost: 100 steps of 32 pairs; about 3 minutes on 2 CPU cores.
- Figure: with MiniLM the next sentence among 699 is found at mean reciprocal rank 0.227 (95 %
  interval 0.203 to 0.250), where the model before training has 0.197.
"""

import json
import re
import sys
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.data import load_corpus
from fmjax.recipes import FinetuneTask
from fmjax.recipes.tasks import Examples, TaskOptimization

DATA = Path("runs/sentence_embeddings/data")


def write(target: Path) -> None:
    """train.jsonl and valid.jsonl: {"anchor", "positive"}."""
    target.mkdir(parents=True, exist_ok=True)
    for split, name in (("train", "train"), ("validation", "valid")):
        lines = []
        for chapter in load_corpus("kjv", split):
            sentences = [s for s in re.split(r"(?<=[.?!])\s+", chapter) if s.strip()]
            pairs = zip(sentences[::2], sentences[1::2], strict=False)
            lines += [json.dumps({"anchor": a, "positive": p}) + "\n" for a, p in pairs]
        (target / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def run(settings: FinetuneTask) -> bool:
    if settings.examples.train.startswith(str(DATA)) and not DATA.exists():
        write(DATA)
    return settings.run()


EMBEDDINGS = FinetuneTask(
    model=Path("minilm"),
    out=Path("runs/sentence_embeddings"),
    task="embedding",
    examples=Examples(
        train=str(DATA / "train.jsonl"), valid=str(DATA / "valid.jsonl"), max_length=64
    ),
    optimization=TaskOptimization(steps=100, batch_size=32, eval_every=50),
)

if __name__ == "__main__":
    sys.exit(experiment(EMBEDDINGS, __doc__, run))
