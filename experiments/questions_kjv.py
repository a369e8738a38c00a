"""Extractive question answering on the King James Bible: "Whose son was Joshua?" "Nun".

Questions are made from the text's own genealogies and asked over whole chapters, which are read in
overlapping windows. With files of your own (SQuAD's JSON, or JSON lines): --train FILE --valid FILE.

- Command: python experiments/questions_kjv.py --model DIR   (any BERT-like directory)
- Cost: TODO
- Figure: TODO
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

DATA = Path("runs/questions_kjv/data")
SON = re.compile(r"\b([A-Z][a-z]+) the son of ([A-Z][a-z]+)")


def write(target: Path) -> None:
    """train.json and valid.json in SQuAD's format."""
    target.mkdir(parents=True, exist_ok=True)
    for split, name in (("train", "train"), ("validation", "valid")):
        chapters = enumerate(load_corpus("kjv", split))
        asked = [{"context": text, "qas": questions(f"{name}-{i}", text)} for i, text in chapters]
        paragraphs = [paragraph for paragraph in asked if paragraph["qas"]]
        content = {"version": "1.1", "data": [{"title": "KJV", "paragraphs": paragraphs}]}
        (target / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


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
    if settings.examples.train.startswith(str(DATA)) and not DATA.exists():
        write(DATA)
    return settings.run()


QUESTIONS = FinetuneTask(
    model=Path("minilm"),
    out=Path("runs/questions_kjv"),
    task="qa",
    examples=Examples(
        train=str(DATA / "train.json"), valid=str(DATA / "valid.json"), max_length=192
    ),
    optimization=TaskOptimization(steps=400, batch_size=16, learning_rate=3e-4, eval_every=100),
)

if __name__ == "__main__":
    sys.exit(experiment(QUESTIONS, __doc__, run))
