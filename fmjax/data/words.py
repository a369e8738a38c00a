"""Which tokens make up a word, for masking whole words."""

import dataclasses

import numpy as np

from fmjax.core.errors import TokenizerError
from fmjax.data.tokenizer import Tokenizer

# A marker that opens the tokens within words (WordPiece), or those that begin a word
# (SentencePiece, byte-level BPE).
_WITHIN, _SENTENCEPIECE, _BYTE_LEVEL = "##", "\u2581", "\u0120"
# Newline, tab and carriage return begin a word too, as the two others write them.
_SPACES = {
    _SENTENCEPIECE: (_SENTENCEPIECE, "<0x0A>", "<0x09>", "<0x0D>"),
    _BYTE_LEVEL: (_BYTE_LEVEL, "\u010a", "\u0109", "\u010d"),
}


@dataclasses.dataclass(frozen=True)
class Words:
    """The role of each id of a vocabulary.

    Attributes:
      starts: bool[V], ids that begin a word.
      special: bool[V], ids that belong to none.
    """

    starts: np.ndarray
    special: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Words":
        """Reads the roles off the tokens: "##ing", "▁go", "Ġgo".

        WordPiece makes each punctuation mark a word; the others join it to the word before.

        Raises:
          TokenizerError: none of these markers is in the vocabulary.
        """
        to_token = getattr(tokenizer, "id_to_token", lambda i: None)
        tokens = [to_token(i) or "" for i in range(tokenizer.vocab_size)]
        counts = {
            marker: sum(token.startswith(marker) for token in tokens)
            for marker in (_WITHIN, _SENTENCEPIECE, _BYTE_LEVEL)
        }
        # Any vocabulary may hold a few tokens that look like another kind's.
        marker = max(counts, key=counts.get)
        if not counts[marker]:
            raise TokenizerError(
                "the tokenizer does not mark where words begin (neither ## nor ▁ nor Ġ), so whole "
                "words cannot be masked; leave out --whole-words, or train a tokenizer with "
                "`fmjax tokenizer --kind wordpiece`"
            )
        if marker == _WITHIN:
            starts = [not token.startswith(_WITHIN) for token in tokens]
        else:
            starts = [token.startswith(_SPACES[marker]) for token in tokens]
        special = np.zeros(len(tokens), bool)
        special[list(tokenizer.special_ids)] = True
        return cls(np.array(starts), special)

    def add(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A row with `word_ids` i32[T]: words count from 0, special tokens and padding have −1.

        Args:
          row: input_ids and segment_ids i32[T]. A segment begins with a new word.
        """
        ids, segments = row["input_ids"], row["segment_ids"]
        starts = self.starts[ids]
        starts[1:] |= segments[1:] != segments[:-1]
        starts[0] = True
        words = np.cumsum(starts, dtype=np.int32) - 1
        return {**row, "word_ids": np.where(self.special[ids] | (segments == 0), -1, words)}
