"""`fmjax tokenizer`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TrainTokenizer:
    """Train a tokenizer: SentencePiece as LLaMA's, WordPiece as BERT's, or bytes as CLIP's.

    The directory loads in transformers' AutoTokenizer with the same ids.

    Attributes:
      data: Text to train on, one or several of: kjv, movie_reviews (their training splits), a
        .txt or .jsonl file, .gz or not, or a quoted glob of them; tfds:NAME; a TFDS directory.
      out: Directory to write.
      vocab_size: Number of ids; at least 261 for bpe.
      kind: bpe, with byte fallback, for models that predict the next token; wordpiece, with [CLS],
        [SEP] and [MASK], for encoders; clip, of words in lower case, for CLIP's captions.
      cased: Keep upper case and accents, which wordpiece drops otherwise; bpe always keeps them.
      text_field: Field of JSON lines and TFDS examples that holds the text.
      split_by: What is one document in a .txt file.
    """

    data: tuple[str, ...]
    out: Path
    vocab_size: int = 8000
    kind: Literal["bpe", "wordpiece", "clip"] = "bpe"
    cased: bool = False
    text_field: str = "text"
    split_by: Literal["document", "line", "file"] = "document"

    def run(self) -> None:
        from fmjax.core.errors import DataError
        from fmjax.data import train_clip_tokenizer, train_sentencepiece, train_wordpiece
        from fmjax.recipes.text import open_text, texts

        if not self.data:
            raise DataError("--data names no text; give a file or a shipped corpus such as kjv")
        sources = [
            open_text(name, by=self.split_by, text_field=self.text_field) for name in self.data
        ]
        text = texts(sources)
        if self.kind == "wordpiece":
            lowercase = not self.cased
            tokenizer = train_wordpiece(text, self.out, self.vocab_size, lowercase=lowercase)
        elif self.kind == "clip":
            tokenizer = train_clip_tokenizer(text, self.out, self.vocab_size)
        else:
            tokenizer = train_sentencepiece(text, self.out, self.vocab_size)
        print(f"{self.out}: {tokenizer.vocab_size} ids")
