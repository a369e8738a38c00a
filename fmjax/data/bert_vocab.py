"""WordPiece as BERT has it: from a vocabulary to a working tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax.core.errors import TokenizerError
from fmjax.data import tokenizer_files

PREFIX = "##"
"""Of pieces within a word."""


def cleaning(config: Mapping[str, Any]):
    """The normaliser that a tokenizer_config.json asks for; text is read in lower case unless it
    says otherwise."""
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )


def wordpiece(vocab: Mapping[str, int], special: Mapping[str, str], config: Mapping[str, Any]):
    """Cleans text, splits it at spaces and punctuation, and spells each word in pieces.

    Args:
      vocab: of the WordPiece model.
      special: unk_token, cls_token and sep_token; the last two stand around a text.
      config: see `cleaning`.

    Returns:
      A `tokenizers.Tokenizer`.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token=special["unk_token"]))
    backend.normalizer = cleaning(config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=PREFIX)
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return backend


def bert_wordpiece(directory: Path, config: Mapping[str, Any]):
    """The tokenizer of a directory that has BERT's original vocab.txt only.

    Args:
      directory: with vocab.txt.
      config: see `tokenizer_files.read_config`; says how text is cleaned.

    Raises:
      TokenizerError: a file that is corrupt or of another family, or lacks a special token.
    """
    family = tokenizer_files.family(directory)
    if family not in ("", "bert"):
        raise TokenizerError(
            f'{directory}: vocab.txt alone defines a BERT tokenizer, but this one is "{family}"; '
            "export its tokenizer.json (AutoTokenizer.save_pretrained) and add it"
        )
    file = directory / "vocab.txt"
    tokenizer_files.refuse_pickle(file)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{file} is not UTF-8 text ({e.reason}); copy the file again") from e
    pieces = lines[:-1] if lines[-1] == "" else lines
    vocab = {piece.rstrip("\r"): i for i, piece in enumerate(pieces)}
    special = {name: config.get(name) or token for name, token in tokenizer_files.BERT.items()}
    for name in ("unk_token", "cls_token", "sep_token"):
        if special[name] not in vocab:
            raise TokenizerError(f"{file} lacks {special[name]!r}, the {name}; copy the file again")
    return wordpiece(vocab, special, config)
