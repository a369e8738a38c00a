"""Extractive question answering on the King James Bible: "Whose son was Joshua?" "Nun".

Questions are made from the text's own genealogies and asked over passages of eight sentences, the
long ones read in overlapping windows; a fifth of the passages is held out. With files of your own
(SQuAD's JSON, or JSON lines): --train FILE --valid FILE.

- Command: python experiments/questions_kjv.py --model DIR   (any BERT-like directory)
- Cost: 200 steps of 16 windows; about 6 minutes on 2 CPU cores.
- Figure: with MiniLM exact match 0.51 (95 % interval 0.43 to 0.59), F1 0.51, on 148 held-out
  questions.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from fmjax.cli.main import experiment
from fmjax.data import load_corpus
from fmjax.recipes import FinetuneTask
from fmjax.recipes.tasks import Examples, TaskOptimization

DATA = Path("runs/questions_kjv/questions.json")
SON = re.compile(r"\b([A-Z][a-z]+) the son of ([A-Z][a-z]+)")


def write(target: Path) -> None:
    """One file in SQuAD's format; passages are eight sentences of a chapter."""
    target.parent.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    for text in load_corpus("kjv"):
        sentences = re.split(r"(?<=[.?!])\s+", text)
        for i in range(0, len(sentences), 8):
            passage = " ".join(sentences[i : i + 8])
            if asked := questions(str(len(paragraphs)), passage):
                paragraphs.append({"context": passage, "qas": asked})
    content = {"version": "1.1", "data": [{"title": "KJV", "paragraphs": paragraphs}]}
    target.write_text(json.dumps(content), encoding="utf-8")


def questions(number: str, text: str) -> list[dict[str, Any]]:
    """One question for each son that the text names with his father."""
    found: dict[str, dict[str, Any]] = {}
    for match in SON.finditer(text):
        son, father = match.groups()
        answer = {"text": father, "answer_start": match.start(2)}
        asked = {"id": f"{number}-{son}", "question": f"Whose son was {son}?", "answers": [answer]}
        found.setdefault(son, asked)
    return list(found.values())


def run(settings: FinetuneTask) -> bool:
    if settings.examples.train == str(DATA) and not DATA.exists():
        write(DATA)
    return settings.run()


QUESTIONS = FinetuneTask(
    model=Path("minilm"),
    out=Path("runs/questions_kjv"),
    task="qa",
    examples=Examples(train=str(DATA), valid_fraction=0.2, max_length=256, stride=64),
    optimization=TaskOptimization(steps=200, batch_size=16, learning_rate=2e-4, eval_every=50),
)

if __name__ == "__main__":
    sys.exit(experiment(QUESTIONS, __doc__, run))
