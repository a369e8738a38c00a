"""Sentiment of movie reviews: fine-tune a sentence encoder on 8,000 rated sentences.

The ratings are means of human judges, −4 to 4; above 0.5 is positive, below −0.5 negative, and what
lies between is left out and counted. With a file of your own: --train FILE --text-column … .

- Command: python experiments/sentiment.py --model DIR   (any BERT-like directory, such as MiniLM's)
  With LoRA: --method lora --out runs/sentiment_lora
- Cost: TODO
- Figure: TODO
"""

import sys
from pathlib import Path

from fmjax.cli.main import experiment
from fmjax.recipes import FinetuneTask
from fmjax.recipes.tasks import Examples, TaskOptimization

SENTIMENT = FinetuneTask(
    model=Path("minilm"),
    out=Path("runs/sentiment"),
    task="classification",
    examples=Examples(train="movie_reviews", max_length=64),
    optimization=TaskOptimization(epochs=2.0, batch_size=32, eval_every=100),
)

if __name__ == "__main__":
    sys.exit(experiment(SENTIMENT, __doc__))
