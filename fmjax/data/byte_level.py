"""Byte-level BPE as GPT-2, RoBERTa and CLIP have it: a tokenizer of a vocabulary and merges."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fmjax.core.errors import TokenizerError
from fmjax.data import tokenizer_files

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

# What CLIP takes for a word; white space is no part of any.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def byte_level_bpe(directory: Path):
    """The tokenizer of a directory that has its two original files only.

    Raises:
      TokenizerError: files that are missing, corrupt or of another family.
    """
    for name in ("vocab.json", "merges.txt"):
        if not (directory / name).is_file():
            raise TokenizerError(f"{directory} has no {name}; copy the tokenizer's files there")
    family = tokenizer_files.family(directory)
    clip = family in ("clip", "clip_text_model", "clip_vision_model")
    if family not in ("", "gpt2", "roberta") and not clip:  # others split text in other ways
        raise TokenizerError(
            f"{directory}: vocab.json and merges.txt alone define a tokenizer of GPT-2, RoBERTa or "
            f'CLIP, but this one is "{family}"; export its tokenizer.json '
            "(AutoTokenizer.save_pretrained) and add it"
        )
    vocab = tokenizer_files.read_json(directory / "vocab.json")
    merges = _merges(directory / "merges.txt")
    try:
        if clip:
            return clip_bpe(vocab, merges)
        backend = _gpt2_bpe(vocab, merges)
        return _roberta(backend, vocab) if family == "roberta" else backend
    except TokenizerError:
        raise
    except Exception as e:  # the library raises bare Exception
        raise TokenizerError(
            f"{directory}: vocab.json and merges.txt do not belong together ({e}); copy both again"
        ) from e


def _merges(path: Path) -> list[tuple[str, str]]:
    tokenizer_files.refuse_pickle(path)
    merges = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if (number == 1 and line.startswith("#version")) or not line.strip():
            continue
        pair = tuple(line.rstrip("\r").split(" "))
        if len(pair) != 2:
            raise TokenizerError(f"{path}, line {number}: not two tokens separated by a space")
        merges.append(pair)
    return merges


def _gpt2_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _roberta(backend, vocab: Mapping[str, int]):
    """The same with both ends of a text, and gaps that take the space before them."""
    from tokenizers import AddedToken, processors

    for token in ("<s>", "</s>", "<mask>"):
        if token not in vocab:
            raise TokenizerError(f"vocab.json lacks {token!r}, which RoBERTa has; copy it again")
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    return backend


def clip_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], words_only: bool = False):
    """CLIP's tokenizer: text in lower case, pieces that end a word marked, both ends of a text.

    Args:
      vocab, merges: of the BPE model.
      words_only: for training: without what a text begins and ends with.

    Returns:
      A `tokenizers.Tokenizer`.

    Raises:
      TokenizerError: a vocabulary without the start and the end of a text.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
            unk_token=None if words_only else END,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    if words_only:
        return backend
    for token in (START, END):
        if token not in vocab:
            raise TokenizerError(f"vocab.json lacks {token!r}, which every text of CLIP has")
    backend.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    return backend
