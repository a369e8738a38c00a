"""Training a WordPiece tokenizer the way BERT's is laid out."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fmjax.core.errors import TokenizerError
from fmjax.data.bert_vocab import PREFIX, wordpiece
from fmjax.data.sources import read_text
from fmjax.data.tokenizer_files import BERT
from fmjax.data.tokenizer_hf import HFTokenizer


def train_wordpiece(
    texts: Iterable[str | Path],
    out_dir: str | Path | None,
    vocab_size: int,
    *,
    lowercase: bool = True,
    special_tokens: Sequence[str] = (),
    alphabet_size: int = 1000,
) -> HFTokenizer:
    """Trains a WordPiece tokenizer for encoders and saves it to `out_dir` (not saved if None).

    Text is cleaned, split at spaces and punctuation, and each word spelt in the pieces that pair
    merging found; pieces within a word start with "##" (arXiv:1810.04805). The same texts give the
    same tokenizer. Ids: `[PAD]` 0, `[UNK]` 1, `[CLS]` 2, `[SEP]` 3, `[MASK]` 4, `special_tokens`
    from 5, then the characters, then the merges. `encode` gives `[CLS] … [SEP]`. The saved
    directory loads in transformers' AutoTokenizer with the same ids.

    Args:
      texts: documents (str) and text files (Path, `.gz` allowed).
      vocab_size: ids in all.
      lowercase: also strips accents, as BERT's "uncased" tokenizers do.
      special_tokens: further ones, never split.
      alphabet_size: the most frequent characters that are kept; a word with another one is `[UNK]`.

    Raises:
      TokenizerError: `vocab_size` is too small, or larger than the texts can fill; no text.
      DataError: a file cannot be read.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    if isinstance(texts, (str, Path)):
        raise TokenizerError("give a list of texts or of pathlib.Path files, not a single one")
    texts = [read_text(text) if isinstance(text, Path) else text for text in texts]
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=BERT["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = _characters(backend, texts, alphabet_size)
    if not characters:
        raise TokenizerError("no text to train a tokenizer on; give non-empty documents or files")
    special = [*BERT.values(), *special_tokens]
    fixed = [*special, *characters]
    if vocab_size <= len(fixed):
        raise TokenizerError(
            f"vocab_size={vocab_size} is too small: the characters and special tokens take "
            f"{len(fixed)}; choose {len(fixed) + 1} or more (8000 is usual for a small corpus)"
        )
    alphabet = [c for c in characters if not c.startswith(PREFIX)]
    backend.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            # The trainer numbers pieces within words in an order of its own that changes from run
            # to run, and breaks ties by number. What it is handed as special comes first, in order.
            special_tokens=fixed,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix=PREFIX,
            show_progress=False,
        ),
    )
    vocab = backend.get_vocab()
    if len(vocab) < vocab_size:
        raise TokenizerError(
            f"vocab_size={vocab_size} is more than these texts can fill; choose {len(vocab)} or "
            "less, or give more text"
        )
    # Anew, as training also declared the characters special.
    fresh = wordpiece(vocab, BERT, {"do_lower_case": lowercase})
    config = {
        # The class that takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **BERT,
    }
    if special_tokens:
        config["additional_special_tokens"] = list(special_tokens)
    tokenizer = HFTokenizer(fresh, config)
    if out_dir is not None:
        tokenizer.save(out_dir)
    return tokenizer


def _characters(backend, texts: Sequence[str], alphabet_size: int) -> list[str]:
    """The most frequent characters, and with "##" those that occur within words; sorted."""
    words: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for character in word:
            counts[character] += n
    alphabet = sorted(counts, key=lambda c: (-counts[c], c))[:alphabet_size]
    within = {c for word in words for c in word[1:]}.intersection(alphabet)
    return sorted(alphabet) + [PREFIX + c for c in sorted(within)]
