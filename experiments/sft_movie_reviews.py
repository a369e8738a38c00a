"""Teach the model of the quickstart to answer: is this review positive or negative?

- Command: python experiments/sft_movie_reviews.py   (after fmjax quickstart)
- Cost: 300 steps of 16 rows of 128 tokens, two passes; about 4 minutes on 2 CPU cores.
- Figure: to be measured.

The reviews are sentences with a mean human rating; those rated neutral are left out. Settings can
be changed on the command line, as in --method full --steps 600.
"""

import json
import sys
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.data import load_corpus, sentiment
from fmjax.recipes import FinetuneSft
from fmjax.recipes.chat import ChatExamples, ChatOptimization
from fmjax.recipes.options import Adaptation

DATA = Path("runs/sft_movie_reviews/data")
QUESTION = "Is this review positive or negative? {}"
ANSWERS = ("It is negative.", "It is positive.")


def write(target: Path) -> None:
    """train.jsonl and valid.jsonl: a question and its answer a line."""
    target.mkdir(parents=True, exist_ok=True)
    for split, name in (("train", "train"), ("validation", "valid")):
        rows = [
            {"prompt": QUESTION.format(e["text"]), "completion": ANSWERS[e["label"]]}
            for e in sentiment(load_corpus("movie_reviews", split))
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (target / f"{name}.jsonl").write_text(text, encoding="utf-8")


def run(settings: FinetuneSft) -> bool:
    if settings.examples.train.startswith(str(DATA)) and not DATA.exists():
        write(DATA)
    return settings.run()


SFT = FinetuneSft(
    model=Path("runs/quickstart/pretrain/model"),
    out=Path("runs/sft_movie_reviews"),
    task="sft",
    examples=ChatExamples(
        train=str(DATA / "train.jsonl"), valid=str(DATA / "valid.jsonl"), max_length=192
    ),
    adaptation=Adaptation(method="lora", rank=16, alpha=32.0),
    optimization=ChatOptimization(steps=300, learning_rate=5e-3, eval_every=100),
)

if __name__ == "__main__":
    sys.exit(experiment(SFT, __doc__, run))
