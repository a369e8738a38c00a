"""Training and evaluation batches from `Data` settings."""

import dataclasses

from fmjax.core.errors import DataError
from fmjax.data import EvalBatches, TextBatches, Tokenizer, Words, eval_batches, text_batches
from fmjax.recipes.options import Data
from fmjax.recipes.text import open_train_and_held_out


@dataclasses.dataclass(frozen=True)
class Batches:
    """What a run reads.

    Attributes:
      train: endless and resumable.
      held_out: one pass over the held-out text; None without any.
    """

    train: TextBatches
    held_out: EvalBatches | None


def open_batches(
    data: Data,
    tokenizer: Tokenizer,
    seed: int = 0,
    evaluate: bool = True,
    whole_words: bool = False,
) -> Batches:
    """Reads and tokenises the text of a run.

    Args:
      evaluate: whether held-out text is needed; documents are held out from training either way.
      whole_words: whether batches say which tokens make up a word.

    Raises:
      DataError: text that cannot be found or read, an empty corpus, weights that do not fit, or
        no held-out text where it is needed.
      TokenizerError: words are wanted and the tokenizer does not mark them.
    """
    train, held_out = open_train_and_held_out(data)
    form = {
        "batch_size": data.batch_size,
        "sequence_length": data.sequence_length,
        "words": Words.of(tokenizer) if whole_words else None,
    }
    batches = text_batches(
        train,
        tokenizer,
        weights=data.weights or None,
        seed=seed,
        streaming=data.streaming,
        **form,
    )
    if not evaluate:
        return Batches(batches, None)
    if not held_out:
        raise DataError(
            "no document is left to evaluate on; name held-out text with --eval-data, raise "
            "--eval-fraction, or switch evaluation off with --eval-every 0"
        )
    return Batches(batches, eval_batches(held_out, tokenizer, **form))
