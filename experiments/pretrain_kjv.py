"""Pretrain a LLaMA of 4.8 million parameters on the King James Bible.

- Command: python experiments/pretrain_kjv.py
- Cost: 1,200 steps of 2,048 tokens, two passes over the text; about 10 minutes on 2 CPU cores.
- Figure: on held-out chapters 1.32 bits per byte, perplexity 27.6 per token and 119 per word, by
  `fmjax eval --model runs/pretrain_kjv/model --data kjv --sequence-length 256`.

Settings can be changed on the command line, as in --steps 2400 --out runs/longer.

Larger runs, as in `--scale v5e-8`; computed, not run:

  scale   model           N (B)  mesh       rows × T    steps  D (B)      6ND  hours     USD  loss
  v5e-8   tinyllama-1.1b   1.10  fsdp=8   256 × 2048   42,000     22  1.5e+20     64     615  2.55
  v5p-16  llama3.2-3b      2.92  fsdp=8   512 × 2048   62,000     65  1.1e+21    215   7,230  2.32
  8xH100  llama-7b         6.74  fsdp=8  1024 × 2048   64,000    134  5.4e+21    476  11,431  2.19

They read C4, prepared as ArrayRecord by TFDS, with a tokenizer that `fmjax tokenizer --vocab-size
32000` wrote to runs/tokenizer-32k. N parameters see D tokens in 6·N·D operations, at an assumed
40 % of the chips' bf16 peak; an assumed 1.20, 4.20 and 3.00 USD for an hour of a v5e chip, a v5p
chip and an H100 (check the day's prices). A v5p-16 has 8 chips. The expected loss, in nats a token,
is that of a fit to other web text and another tokenizer (arXiv:2203.15556):
1.69 + 406.4 / N^0.34 + 410.7 / D^0.28.
"""

import sys
from pathlib import Path
from typing import Any

from fmjax.cli.main import experiment
from fmjax.cli.tokenizer import TrainTokenizer
from fmjax.recipes import Cadence, Data, Hardware, Optimization, Pretrain

TOKENIZER = TrainTokenizer(
    data=("kjv", "movie_reviews"), out=Path("runs/tokenizer-2k"), vocab_size=2048
)

PRETRAIN = Pretrain(
    model="tinyllama-1.1b",
    override=(
        "hidden_size=256",
        "intermediate_size=672",
        "num_hidden_layers=6",
        "num_attention_heads=8",
        "num_key_value_heads=4",
        "tie_word_embeddings=true",
    ),
    tokenizer=str(TOKENIZER.out),
    out=Path("runs/pretrain_kjv"),
    data=Data(data=("kjv",), batch_size=8, sequence_length=256),
    optimization=Optimization(steps=1200, learning_rate=2e-3, schedule="wsd", warmup=60),
    cadence=Cadence(eval_every=200, checkpoint_every=500),
)


def scaled(model: str, out: str, batch_size: int, **optimization: Any) -> Pretrain:
    """A run on web text with a tokenizer of 32,000 ids, sharded over all chips."""
    return Pretrain(
        model=model,
        override=("vocab_size=32000",),
        tokenizer="runs/tokenizer-32k",
        out=Path(f"runs/pretrain_{out}"),
        data=Data(
            data=("tfds:c4/en",), batch_size=batch_size, sequence_length=2048, streaming=True
        ),
        optimization=Optimization(warmup=2000, z_loss=1e-4, **optimization),
        hardware=Hardware(mesh="fsdp=8", remat="full"),
        cadence=Cadence(eval_every=1000, checkpoint_every=1000, log_every=20),
    )


SCALES = {
    "v5e-8": scaled("tinyllama-1.1b", "1b", 256, steps=42_000, learning_rate=4e-4, accumulate=8),
    "v5p-16": scaled("llama3.2-3b", "3b", 512, steps=62_000, learning_rate=3e-4, accumulate=2),
    "8xH100": scaled("llama-7b", "7b", 1024, steps=64_000, learning_rate=3e-4, accumulate=8),
}


def run(options: Pretrain) -> bool:
    """Trains the tokenizer too where it is missing."""
    if options.tokenizer == str(TOKENIZER.out) and not TOKENIZER.out.exists():
        TOKENIZER.run()
    return options.run()


if __name__ == "__main__":
    sys.exit(experiment(PRETRAIN, __doc__, run, scales=SCALES))
