"""Pretrain a BERT of 2.2 million parameters on the King James Bible.

- Command: python experiments/pretrain_bert_kjv.py
- Cost: 1,200 steps of 2,048 tokens, two passes over the text; minutes on 2 CPU cores.
- Figure: on held-out chapters masked accuracy 0.153 (most frequent token: 0.065) and loss 5.195
  (unigram 5.782); it is printed at the end of the run.

Settings can be changed on the command line, as in --whole-words --out runs/whole-words.
"""

import sys
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.cli.tokenizer import TrainTokenizer
from fmjax.recipes import Cadence, Data, Hardware, Optimization, Pretrain

TOKENIZER = TrainTokenizer(
    data=("kjv", "movie_reviews"),
    out=Path("runs/tokenizer-wordpiece-2k"),
    vocab_size=2048,
    kind="wordpiece",
)

PRETRAIN = Pretrain(
    model="bert-base",
    override=(
        "hidden_size=192",
        "intermediate_size=768",
        "num_hidden_layers=4",
        "num_attention_heads=6",
        "max_position_embeddings=128",
        # The text is seen too few times to be learnt by heart.
        "hidden_dropout_prob=0",
        "attention_probs_dropout_prob=0",
    ),
    tokenizer=str(TOKENIZER.out),
    out=Path("runs/pretrain_bert_kjv"),
    data=Data(data=("kjv",), batch_size=32, sequence_length=64),
    optimization=Optimization(steps=1200, learning_rate=1e-3, warmup=100),
    cadence=Cadence(eval_every=200, checkpoint_every=400),
)


def scaled(model: str, out: str, batch_size: int, accumulate: int, **optimization) -> Pretrain:
    """A run on a file of JSON lines with a tokenizer of 30,522 ids, sharded over all chips."""
    return Pretrain(
        model=model,
        override=("vocab_size=30522",),
        tokenizer="runs/tokenizer-wordpiece-30k",
        out=Path(f"runs/pretrain_{out}"),
        data=Data(
            data=("wikipedia.jsonl",),
            eval_fraction=0.001,
            batch_size=batch_size,
            sequence_length=512,
        ),
        optimization=Optimization(accumulate=accumulate, **optimization),
        hardware=Hardware(mesh="fsdp=8"),
        cadence=Cadence(eval_every=1000, checkpoint_every=1000, log_every=20),
    )


SCALES = {
    "v5e-8": scaled(
        "roberta-base", "roberta_base", 4096, 32, steps=31_000, learning_rate=5e-4, warmup=1860
    ),
    "v5p-16": scaled(
        "bert-large", "bert_large", 2048, 4, steps=125_000, learning_rate=4e-4, warmup=7500
    ),
    "8xH100": scaled(
        "roberta-large", "roberta_large", 8192, 32, steps=100_000, learning_rate=4e-4, warmup=6000
    ),
}


def run(options: Pretrain) -> bool:
    """Trains the tokenizer too where it is missing."""
    if options.tokenizer == str(TOKENIZER.out) and not TOKENIZER.out.exists():
        TOKENIZER.run()
    return options.run()


if __name__ == "__main__":
    sys.exit(experiment(PRETRAIN, __doc__, run, scales=SCALES))
