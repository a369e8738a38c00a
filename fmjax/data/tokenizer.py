"""What a tokenizer is, and how one is found in a directory.

Heavy libraries are imported by the class that needs them, when it needs them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fmjax.core.errors import TokenizerError
from fmjax.data import tokenizer_files


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. What needs a tokenizer needs only this.

    Encoders are trained on text with `cls_token_id` and `sep_token_id` (int | None) around
    documents, `mask_token_id` in gaps, `special_ids` never hidden, and `id_to_token(i)` to find
    words. These are optional; the tokenizers of fmjax have them.
    """

    vocab_size: int  # one more than the largest id
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens written out in `text` become their own ids."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """Ids (or text, with `tokenize=False`) of a conversation."""

    def save(self, directory: str | Path) -> None:
        """Writes files that `load_tokenizer` and transformers' AutoTokenizer read."""


def encode_batch(
    tokenizer: Tokenizer, texts: Sequence[str], add_special_tokens: bool = True
) -> list[list[int]]:
    """`tokenizer.encode` of each text, through its `encode_batch` (parallel) if it has one."""
    batch = getattr(tokenizer, "encode_batch", None)
    if batch is not None:
        return batch(texts, add_special_tokens=add_special_tokens)
    return [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises TokenizerError if the tokenizer has ids that a table of `vocab_size` rows lacks.

    A larger table is fine: checkpoints pad theirs to a round number.
    """
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} ids but the model's vocab_size is "
            f"{vocab_size}; use the tokenizer that the model was trained with, or build the model "
            f"with vocab_size={tokenizer.vocab_size} or more"
        )


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer stored in `directory` (a model directory, or one of its tokenizer files).

    Picks `tokenizer.json`, else `tokenizer.model` (SentencePiece), else `vocab.json` +
    `merges.txt` (byte-level BPE of GPT-2, RoBERTa or CLIP), else `vocab.txt` (BERT's WordPiece); a
    `spiece.model` first where the files are SigLIP's, as in transformers. `tokenizer_config.json`,
    `special_tokens_map.json` and `chat_template.jinja` are read where present.

    Raises:
      TokenizerError: nothing there, a corrupt file, or a pickle.
    """
    path = Path(directory)
    if path.is_file():
        tokenizer_files.refuse_pickle(path)
        if path.name not in ("tokenizer.json", "tokenizer.model", "spiece.model"):
            raise TokenizerError(
                f"{path} is not a tokenizer file; give the directory, a tokenizer.json, a "
                "tokenizer.model or SigLIP's spiece.model"
            )
        first, path = path.name, path.parent
    else:
        first = "tokenizer.json"
        if not path.is_dir():
            raise TokenizerError(f"{path}: no such directory; give a directory with tokenizer.json")
    siglip = (path / "spiece.model").is_file() and tokenizer_files.family(path) in (
        "siglip",
        *("siglip_text_model", "siglip_vision_model"),
    )
    if first == "spiece.model" or (siglip and first == "tokenizer.json"):
        from fmjax.data.tokenizer_siglip import SiglipTokenizer

        return SiglipTokenizer.load(path)
    has = {name: (path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")}
    if has["tokenizer.json"] and first == "tokenizer.json":
        from fmjax.data.tokenizer_hf import HFTokenizer

        return HFTokenizer.load(path)
    if has["tokenizer.model"]:
        from fmjax.data.tokenizer_spm import SentencePieceTokenizer

        return SentencePieceTokenizer.load(path)
    merges = (path / "vocab.json").is_file() and (path / "merges.txt").is_file()
    if merges or (path / "vocab.txt").is_file():
        from fmjax.data.tokenizer_hf import HFTokenizer

        return HFTokenizer.load(path)
    pickles = sorted(p for p in path.iterdir() if p.suffix in tokenizer_files.PICKLE_SUFFIXES)
    for pickle in pickles:
        tokenizer_files.refuse_pickle(pickle)
    raise TokenizerError(
        f"{path} has no tokenizer: neither tokenizer.json, nor tokenizer.model, nor vocab.json "
        "with merges.txt, nor vocab.txt; copy the tokenizer's files there"
    )
