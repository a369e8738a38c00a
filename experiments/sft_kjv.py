"""Teach the model of the quickstart to answer: which book of the Bible is this verse from?

- Command: python experiments/sft_kjv.py   (after fmjax quickstart)
- Cost: 100 steps of 16 rows of 192 tokens; about 2 minutes on 2 CPU cores.
- Figure: on 403 held-out verses the exact answer in 0.397 (95 % interval 0.352 to 0.447), where the
  most frequent book alone has 0.305; perplexity of the answers 1.26 a token, from 1,124 before.

The model has read the Bible when it was pretrained, but not the names of its books. The verses are
of six books. Settings can be changed on the command line, as in --method lora --rank 32.
"""

import gzip
import json
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.recipes import FinetuneSft
from fmjax.recipes.chat import ChatExamples, ChatOptimization
from fmjax.recipes.options import Adaptation

DATA = Path("runs/sft_kjv/verses.jsonl")
QUESTION = "Which book is this verse from? {}"
BOOKS = {"Ge": "Genesis", "Lev": "Leviticus", "Psa": "Psalms", "Prv": "Proverbs", "Isa": "Isaiah",
         "Acts": "Acts"}  # fmt: skip


def verses() -> Iterator[tuple[str, str]]:
    """(book, text) of each verse of the six books."""
    packed = resources.files("fmjax.data").joinpath("corpora", "kjv.txt.gz").read_bytes()
    for line in gzip.decompress(packed).decode("utf-8").splitlines():
        label, text = line.split(" ", 1)
        if book := BOOKS.get(re.sub(r"\d+:\d+$", "", label)):
            yield book, text


def write(target: Path) -> None:
    """A question and its answer a line."""
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"prompt": QUESTION.format(text), "completion": f"{book}."} for book, text in verses())
    part = target.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(target)


def run(settings: FinetuneSft) -> bool:
    if settings.examples.train == str(DATA) and not DATA.exists():
        write(DATA)
    return settings.run()


SFT = FinetuneSft(
    model=Path("runs/quickstart/pretrain/model"),
    out=Path("runs/sft_kjv"),
    task="sft",
    examples=ChatExamples(train=str(DATA), remove_overlap=True, max_length=192),
    adaptation=Adaptation(method="full"),
    optimization=ChatOptimization(steps=100, learning_rate=1e-3, eval_every=50),
)

if __name__ == "__main__":
    sys.exit(experiment(SFT, __doc__, run))
