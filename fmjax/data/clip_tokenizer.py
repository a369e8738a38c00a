"""Training a tokenizer the way CLIP's was: byte-level BPE of words in lower case."""

import json
from collections.abc import Iterable
from pathlib import Path

from fmjax.core.errors import TokenizerError
from fmjax.data.byte_level import END, START, WORD_END, clip_bpe
from fmjax.data.sources import read_text
from fmjax.data.tokenizer_hf import HFTokenizer

_SMALLEST = 2 * 256 + 2  # every byte, within a word and at its end, and both ends of a text


def train_clip_tokenizer(
    texts: Iterable[str | Path],
    out_dir: str | Path | None,
    vocab_size: int,
    *,
    max_length: int = 77,
) -> HFTokenizer:
    """Trains a tokenizer in CLIP's form and saves it to `out_dir` (not saved if None).

    The same texts give the same tokenizer, byte for byte. Ids: the 256 bytes, the 256 bytes that
    end a word, the merges, `<|startoftext|>`, and last `<|endoftext|>`, which pads, too. The saved
    directory loads in transformers' AutoTokenizer with the same ids.

    Args:
      texts: captions (str) and text files (Path, `.gz` allowed).
      vocab_size: ids in all; at least 514. Few texts can give less.
      max_length: of a row, written down for those who read the files.

    Raises:
      TokenizerError: `vocab_size` is too small; no text.
      DataError: a file cannot be read.
    """
    from tokenizers import pre_tokenizers, trainers

    if vocab_size < _SMALLEST:
        raise TokenizerError(
            f"vocab_size={vocab_size} is too small: the bytes and special tokens take {_SMALLEST}; "
            "choose more (4000 is usual for a small corpus)"
        )
    if isinstance(texts, (str, Path)):
        raise TokenizerError("give a list of texts or of pathlib.Path files, not a single one")
    texts = [read_text(text) if isinstance(text, Path) else text for text in texts]
    if not any(text.strip() for text in texts):
        raise TokenizerError("no text to train a tokenizer on; give non-empty captions or files")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = clip_bpe({}, [], words_only=True)
    trainer = trainers.BpeTrainer(
        # Bytes that end no word of these texts have no place in the trainer's vocabulary.
        vocab_size=vocab_size - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    merges = merges[: vocab_size - _SMALLEST]
    pieces = [*alphabet, *(byte + WORD_END for byte in alphabet), *(a + b for a, b in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    companions = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": "\n".join(lines).encode(),
    }
    tokenizer = HFTokenizer(clip_bpe(vocab, merges), config, companions)
    if out_dir is not None:
        tokenizer.save(out_dir)
    return tokenizer
