"""Pretrain a BERT of 1.1 million parameters on the King James Bible.

- Command: python experiments/pretrain_bert_kjv.py
- Cost: 1,200 steps of 2,048 tokens, 2.4 passes over the text; 4 minutes on 2 CPU cores.
- Figure: on held-out chapters masked accuracy 0.288 (most frequent token: 0.069), loss 4.125 nats a
  hidden token (unigram 5.771), with 30 % of the tokens hidden; printed at the end of the run.

Settings can be changed on the command line, as in --whole-words --out runs/whole-words.

Larger runs, as in `--scale v5e-8`; computed, not run:

  scale   model           N (B)  mesh       rows × T    steps  D (B)      6ND  hours     USD  loss
  v5e-8   bert-base        0.11  fsdp=8   2048 × 512  125,000    131  8.6e+19     38     364     -
  v5p-16  bert-large       0.34  fsdp=8   2048 × 512  125,000    131  2.6e+20     50   1,675     -
  8xH100  roberta-large    0.34  fsdp=8   8192 × 512  100,000    419  8.4e+20     74   1,777     -

They read C4, prepared as ArrayRecord by TFDS, with a tokenizer that `fmjax tokenizer --kind
wordpiece --vocab-size 30522` wrote to runs/tokenizer-wordpiece-30k. N parameters see D tokens in
6·N·D operations, at an assumed 40 % of the chips' bf16 peak; an assumed 1.20, 4.20 and 3.00 USD for
an hour of a v5e chip, a v5p chip and an H100 (check the day's prices). A v5p-16 has 8 chips. No
scaling law of masked models is at hand, so that no loss is computed. Of the first row's size and
schedule, on other text and with another tokenizer, arXiv:1907.11692 (table 3) reports a held-out
perplexity of 3.68, 1.30 nats a hidden token.
"""

import sys
from pathlib import Path
from typing import Any

from fmjax.cli.main import experiment
from fmjax.cli.tokenizer import TrainTokenizer
from fmjax.recipes import Cadence, Data, Hardware, Masking, Optimization, Pretrain

TOKENIZER = TrainTokenizer(
    data=("kjv", "movie_reviews"),
    out=Path("runs/tokenizer-wordpiece-2k"),
    vocab_size=2048,
    kind="wordpiece",
)

PRETRAIN = Pretrain(
    model="bert-base",
    override=(
        "hidden_size=128",
        "intermediate_size=512",
        "num_hidden_layers=4",
        "num_attention_heads=4",
        "max_position_embeddings=128",
        # BERT's 0.02 at a width of 768 grows as the root of the width shrinks.
        "initializer_range=0.05",
        # The text is seen too few times to be learnt by heart.
        "hidden_dropout_prob=0",
        "attention_probs_dropout_prob=0",
    ),
    tokenizer=str(TOKENIZER.out),
    out=Path("runs/pretrain_bert_kjv"),
    data=Data(data=("kjv",), batch_size=64, sequence_length=32),
    masking=Masking(mask_probability=0.3),
    optimization=Optimization(steps=1200, learning_rate=2e-3, warmup=100),
    cadence=Cadence(eval_every=200, checkpoint_every=400),
)


def scaled(model: str, out: str, batch_size: int, **optimization: Any) -> Pretrain:
    """A run on web text with a tokenizer of 30,522 ids, sharded over all chips."""
    return Pretrain(
        model=model,
        override=("vocab_size=30522",),
        tokenizer="runs/tokenizer-wordpiece-30k",
        out=Path(f"runs/pretrain_{out}"),
        data=Data(data=("tfds:c4/en",), batch_size=batch_size, sequence_length=512, streaming=True),
        optimization=Optimization(**optimization),
        hardware=Hardware(mesh="fsdp=8", remat="full"),
        cadence=Cadence(eval_every=1000, checkpoint_every=1000, log_every=20),
    )


SCALES = {
    "v5e-8": scaled(
        "bert-base", "bert_base", 2048,
        steps=125_000, learning_rate=7e-4, warmup=7500, accumulate=8,
    ),
    "v5p-16": scaled(
        "bert-large", "bert_large", 2048,
        steps=125_000, learning_rate=4e-4, warmup=7500, accumulate=2,
    ),
    "8xH100": scaled(
        "roberta-large", "roberta_large", 8192,
        steps=100_000, learning_rate=4e-4, warmup=6000, accumulate=16,
    ),
}  # fmt: skip


def run(options: Pretrain) -> bool:
    """Trains the tokenizer too where it is missing."""
    if options.tokenizer == str(TOKENIZER.out) and not TOKENIZER.out.exists():
        TOKENIZER.run()
    return options.run()


if __name__ == "__main__":
    sys.exit(experiment(PRETRAIN, __doc__, run, scales=SCALES))
