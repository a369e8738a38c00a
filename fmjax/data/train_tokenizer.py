"""Training a SentencePiece tokenizer the way LLaMA's was: BPE with byte fallback."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fmjax.core.errors import TokenizerError
from fmjax.data.sources import read_text
from fmjax.data.tokenizer_spm import SentencePieceTokenizer

_SPECIAL_PIECES = ("<unk>", "<s>", "</s>", "<pad>")
_SMALLEST = len(_SPECIAL_PIECES) + 256  # special pieces and one piece a byte


def _lines(texts: Iterable[str | Path]) -> Iterator[str]:
    """Lines, because a newline is never part of a piece: it stays a byte, as in LLaMA."""
    for text in texts:
        if isinstance(text, Path):
            text = read_text(text)
        for line in text.split("\n"):
            # SentencePiece cannot train on NUL, and takes ▁ for a space.
            line = line.replace("\0", "")
            if line.strip():
                yield line


def train_sentencepiece(
    texts: Iterable[str | Path],
    out_dir: str | Path | None,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = (),
    character_coverage: float = 0.9995,
    split_digits: bool = True,
    chat_template: str | None = None,
) -> SentencePieceTokenizer:
    """Trains a byte-fallback BPE tokenizer and saves it to `out_dir` (not saved if None).

    The same texts give the same tokenizer, byte for byte. Ids: `<unk>` 0, `<s>` 1, `</s>` 2,
    `<pad>` 3, `special_tokens` from 4, then the 256 bytes, then the merges. The saved directory
    loads in transformers' AutoTokenizer with the same ids. `encode` adds BOS and no EOS.

    Args:
      texts: documents (str) and text files (Path, `.gz` allowed).
      vocab_size: ids in all; at least 261.
      special_tokens: control tokens, such as chat markers.
      character_coverage: share of the text's characters that get pieces of their own; rarer ones
        are spelt in bytes.
      split_digits: one piece per digit.
      chat_template: Jinja source stored with the tokenizer.

    Raises:
      TokenizerError: `vocab_size` is too small, or larger than the texts can fill; no text.
      DataError: a file cannot be read.
    """
    import sentencepiece

    smallest = _SMALLEST + len(special_tokens) + 1
    if vocab_size < smallest:
        raise TokenizerError(
            f"vocab_size={vocab_size} is too small: the bytes and special tokens take "
            f"{smallest - 1}; choose {smallest} or more (8000 is usual for a small corpus)"
        )
    if isinstance(texts, (str, Path)):
        raise TokenizerError("give a list of texts or of pathlib.Path files, not a single one")
    lines = list(_lines(texts))
    if not lines:
        raise TokenizerError("no text to train a tokenizer on; give non-empty documents or files")
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=split_digits,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            control_symbols=list(special_tokens),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            # The default skips longer lines silently.
            max_sentence_length=max(10, *(len(line.encode()) + 1 for line in lines)),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as e:
        largest = re.search(r"too high.*<= (\d+)", str(e))
        if largest:
            raise TokenizerError(
                f"vocab_size={vocab_size} is more than these texts can fill; choose "
                f"{largest.group(1)} or less, or give more text"
            ) from e
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(e))
        if needed:
            raise TokenizerError(
                f"vocab_size={vocab_size} has no room for these texts' characters; choose "
                f"{needed.group(1)} or more, or a smaller character_coverage"
            ) from e
        raise TokenizerError(f"SentencePiece cannot train on these texts: {e}") from e
    config = {
        # The class that takes tokenizer.json as it is. LlamaTokenizer would rebuild it, and
        # differ from SentencePiece on texts that start with a space.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    if special_tokens:
        config["additional_special_tokens"] = list(special_tokens)
    if chat_template:
        config["chat_template"] = {"default": chat_template}
    tokenizer = SentencePieceTokenizer(out.getvalue(), config)
    if out_dir is not None:
        tokenizer.save(out_dir)
    return tokenizer
