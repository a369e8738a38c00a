"""Preferences: how a sentence of the King James Bible goes on, rather than how another one does.

- Command: python experiments/dpo_kjv.py   (after fmjax quickstart)
- Cost: 100 steps of 8 pairs; about 1 minute on 2 CPU cores.
- Figure: to be measured.

The prompt is the first half of a sentence, the chosen answer its second half, the rejected one the
second half of another sentence of the same chapter. Settings can be changed on the command line, as
in --loss ipo --beta 0.2.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmjax.cli.main import experiment
from fmjax.data import load_corpus
from fmjax.recipes import FinetuneDpo
from fmjax.recipes.chat import ChatExamples, ChatOptimization
from fmjax.recipes.options import Adaptation

DATA = Path("runs/dpo_kjv/data")
WORDS = range(8, 15)  # of a sentence


def write(target: Path) -> None:
    """train.jsonl and valid.jsonl: prompt, chosen and rejected a line, of different chapters."""
    target.mkdir(parents=True, exist_ok=True)
    for split, name in (("train", "train"), ("validation", "valid")):
        rows = pairs(load_corpus("kjv", split))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (target / f"{name}.jsonl").write_text(text, encoding="utf-8")


def pairs(chapters: list[str]) -> Iterator[dict[str, Any]]:
    """Of each chapter with two sentences or more, each sentence once."""
    chance = random.Random(0)
    for chapter in chapters:
        sentences = [s.split() for s in re.split(r"(?<=[.?!])\s+", chapter)]
        sentences = [words for words in sentences if len(words) in WORDS]
        halves = [
            (" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :]))
            for words in sentences
        ]
        for i, (first, second) in enumerate(halves):
            others = [h for k, (_, h) in enumerate(halves) if k != i and h != second]
            if others:
                yield {"prompt": first, "chosen": second, "rejected": chance.choice(others)}


def run(settings: FinetuneDpo) -> bool:
    if settings.examples.train.startswith(str(DATA)) and not DATA.exists():
        write(DATA)
    return settings.run()


DPO = FinetuneDpo(
    model=Path("runs/quickstart/pretrain/model"),
    out=Path("runs/dpo_kjv"),
    task="dpo",
    examples=ChatExamples(
        train=str(DATA / "train.jsonl"), valid=str(DATA / "valid.jsonl"), max_length=64
    ),
    adaptation=Adaptation(method="lora", rank=16, alpha=32.0),
    optimization=ChatOptimization(steps=100, batch_size=8, learning_rate=1e-3, eval_every=50),
)

if __name__ == "__main__":
    sys.exit(experiment(DPO, __doc__, run))
