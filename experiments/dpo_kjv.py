"""Preferences: the right book of the Bible rather than a wrong one, from the model of sft_kjv.py.

- Command: python experiments/dpo_kjv.py   (after sft_kjv.py)
- Cost: 150 steps of 16 pairs; about 2 minutes on 2 CPU cores.
- Figure: on 403 held-out verses the right book gets the higher reward in 0.730 (95 % interval 0.685
  to 0.772). The chosen answers lose probability too (from -1.5 to -7.5 nats), and some greedy
  answers are no book any more: a smaller --learning-rate or a larger --beta keeps nearer to the
  model that it began with.

Prompts and held-out verses are those of sft_kjv.py; the rejected answer is one of the other five
books. Settings can be changed on the command line, as in --loss ipo --beta 0.2.
"""

import json
import random
import sys
from pathlib import Path

from sft_kjv import BOOKS, QUESTION, verses

from fmjax.cli.main import experiment
from fmjax.recipes import FinetuneDpo
from fmjax.recipes.chat import ChatExamples, ChatOptimization
from fmjax.recipes.options import Adaptation

DATA = Path("runs/dpo_kjv/pairs.jsonl")


def write(target: Path) -> None:
    """A question, its answer and a wrong one a line."""
    target.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    lines = []
    for book, text in verses():
        wrong = chance.choice([other for other in BOOKS.values() if other != book])
        row = {"prompt": QUESTION.format(text), "chosen": f"{book}.", "rejected": f"{wrong}."}
        lines.append(json.dumps(row) + "\n")
    part = target.with_suffix(".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(target)


def run(settings: FinetuneDpo) -> bool:
    if settings.examples.train == str(DATA) and not DATA.exists():
        write(DATA)
    return settings.run()


DPO = FinetuneDpo(
    model=Path("runs/sft_kjv/model"),
    out=Path("runs/dpo_kjv"),
    task="dpo",
    examples=ChatExamples(train=str(DATA), remove_overlap=True, max_length=192),
    adaptation=Adaptation(method="lora", rank=16, alpha=32.0),
    optimization=ChatOptimization(steps=150, learning_rate=1e-3, eval_every=50),
)

if __name__ == "__main__":
    sys.exit(experiment(DPO, __doc__, run))
