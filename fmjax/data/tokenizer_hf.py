"""Tokenizers of the `tokenizers` library: `tokenizer.json`, or vocabulary and merges."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmjax.core.errors import TokenizerError
from fmjax.data import tokenizer_files
from fmjax.data.bert_vocab import bert_wordpiece, cleaning
from fmjax.data.byte_level import byte_level_bpe
from fmjax.data.encoding import Encoding, WordEncoding
from fmjax.data.tokenizer_base import TokenizerBase, check_text, check_words

# Files that only other programs read; a loaded tokenizer carries them to where it is saved.
_COMPANIONS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")


class HFTokenizer(TokenizerBase):
    """A `tokenizers.Tokenizer` with the special tokens of its `tokenizer_config.json`.

    What `add_special_tokens=True` adds is the post-processor's decision, as in transformers 5:
    `add_bos_token` / `add_eos_token` count only where there is no `tokenizer.json` to hold one.
    Ids agree with transformers' AutoTokenizer (tested).

    Args:
      backend: the `tokenizers.Tokenizer`; becomes this object's own.
      config: as `tokenizer_files.read_config` gives it.
      companions: further files to save beside it.
      build_post_processor: make the post-processor from `add_bos_token` / `add_eos_token`.
    """

    def __init__(
        self,
        backend,
        config: Mapping[str, Any],
        companions: Mapping[str, bytes] | None = None,
        *,
        build_post_processor: bool = False,
    ):
        super().__init__(config)
        self._backend = backend
        self._companions = dict(companions or {})
        backend.no_truncation()
        backend.no_padding()
        self._add_special_tokens()
        # One more than the largest id, added tokens included.
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if build_post_processor and ("add_bos_token" in config or "add_eos_token" in config):
            self._set_post_processor()
        # CLIP's pieces say where a word ends instead of where it begins.
        self._word_end = getattr(backend.model, "end_of_word_suffix", None)
        # The cleanup undoes WordPiece's spacing; on BPE it would eat real spaces.
        self._clean_up = bool(config.get("clean_up_tokenization_spaces")) and (
            type(backend.model).__name__ != "BPE"
        )

    @classmethod
    def load(cls, directory: str | Path) -> "HFTokenizer":
        """From `tokenizer.json`, or else from `vocab.json` and `merges.txt`, or from `vocab.txt`.

        Raises:
          TokenizerError: a file is missing, corrupt or a pickle.
        """
        import tokenizers

        directory = Path(directory)
        config = tokenizer_files.read_config(directory)
        path = directory / "tokenizer.json"
        if path.is_file():
            tokenizer_files.read_json(path)  # names the broken line, and refuses pickles
            try:
                backend = tokenizers.Tokenizer.from_file(str(path))
            except Exception as e:  # the library raises bare Exception
                raise TokenizerError(
                    f"{path} is not a tokenizers file ({e}); copy the file again"
                ) from e
        elif not (directory / "vocab.json").is_file() and (directory / "vocab.txt").is_file():
            backend = bert_wordpiece(directory, config)
        else:
            backend = byte_level_bpe(directory)
            if getattr(backend.model, "end_of_word_suffix", None):
                # What is saved must say whose pieces these are, with no config.json beside it.
                config = {"tokenizer_class": "CLIPTokenizer"} | config
            config = {**config, **{
                name: config.get(name) or "<|endoftext|>"
                for name in ("bos_token", "eos_token", "unk_token")
            }}  # fmt: skip
        _switch(backend, tokenizer_files.family(directory), config)
        companions = {
            name: (directory / name).read_bytes()
            for name in _COMPANIONS
            if (directory / name).is_file()
        }
        return cls(backend, config, companions, build_post_processor=not path.is_file())

    def _add_special_tokens(self) -> None:
        """Adds the tokens that the configuration names and the vocabulary lacks."""
        from tokenizers import AddedToken

        declared = self.config.get("added_tokens_decoder") or {}
        wanted = [declared[key] for key in sorted(declared, key=int)]
        wanted += [self.config.get(name) for name in tokenizer_files.SPECIAL]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            extra = self.config.get(key) or []
            wanted += list(extra.values() if isinstance(extra, dict) else extra)
        for token in wanted:
            if token is None:
                continue
            options = {"special": True, "normalized": False}
            if isinstance(token, dict):
                names = ("lstrip", "rstrip", "single_word", "normalized", "special")
                options |= {k: bool(token[k]) for k in names if k in token}
                token = token["content"]
            added = AddedToken(token, **options)
            if options["special"]:
                self._backend.add_special_tokens([added])
            elif self._backend.token_to_id(token) is None:
                self._backend.add_tokens([added])

    def _set_post_processor(self) -> None:
        from tokenizers.processors import TemplateProcessing

        bos = self.bos_token if self.config.get("add_bos_token") else None
        eos = self.eos_token if self.config.get("add_eos_token") else None
        single = " ".join([bos] * bool(bos) + ["$A"] + [eos] * bool(eos))
        self._backend.post_processor = TemplateProcessing(
            single=single,
            pair=f"{single} {single.replace('$A', '$B')}",
            special_tokens=[(t, self.token_to_id(t)) for t in {bos, eos} if t],
        )

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def id_to_token(self, i: int) -> str | None:
        return self._backend.id_to_token(i)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens written out in `text` become their own ids."""
        check_text(text)
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        for text in texts:
            check_text(text)
        encoded = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [e.ids for e in encoded]

    def encode_with_offsets(self, texts: Sequence[str | tuple[str, str]]) -> list[Encoding]:
        """Encodings of texts or of pairs, whole and with special tokens, in parallel."""
        for text in texts:
            for part in text if isinstance(text, tuple) else (text,):
                check_text(part)
        return [_encoding(e) for e in self._backend.encode_batch(list(texts))]

    def encode_words_with_offsets(self, sentences: Sequence[Sequence[str]]) -> list[WordEncoding]:
        """Encodings of sentences given as words, and the word number of each token."""
        given = [check_words(words) for words in sentences]
        if not self._words_need_space:
            return [(_encoding(e), e.word_ids) for e in self._encode_split(given)]
        # A special token as a word stands alone: a space before it would be a token of its own.
        special = tuple(t.content for t in self._backend.get_added_tokens_decoder().values())
        bare = (" ", *special)
        spaced = [[w if not w or w.startswith(bare) else f" {w}" for w in ws] for ws in given]
        out = []
        for before, after, e in zip(given, spaced, self._encode_split(spaced), strict=True):
            offsets = e.offsets
            for i, word in enumerate(e.word_ids):
                if word is not None and len(after[word]) > len(before[word]):
                    # The added space counts as part of the word's first character.
                    start, stop = offsets[i]
                    offsets[i] = (start - 1, stop - 1) if start else (0, max(stop - 1, 1))
            out.append((dataclasses.replace(_encoding(e), offsets=offsets), e.word_ids))
        return out

    def _encode_split(self, sentences: Sequence[list[str]]) -> list:
        return self._backend.encode_batch(list(sentences), is_pretokenized=True)

    @functools.cached_property
    def _words_need_space(self) -> bool:
        """Whether words encoded one by one are not what they are within a text."""
        text = self._backend.encode("a a", add_special_tokens=False)
        words = self._backend.encode(["a", "a"], is_pretokenized=True, add_special_tokens=False)
        return text.ids != words.ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        ids = [int(i) for i in ids]
        text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self._word_end:
            text = text.replace(self._word_end, " ").strip()
        if self._clean_up:
            for spaced, joined in _CLEAN_UP:
                text = text.replace(spaced, joined)
        return text

    def _files(self) -> dict[str, bytes]:
        content = self._backend.to_str(pretty=True).encode()
        return {**self._companions, "tokenizer.json": content}


def _encoding(encoded) -> Encoding:
    return Encoding(encoded.ids, encoded.type_ids, encoded.sequence_ids, encoded.offsets)


_CLEAN_UP = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
             (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")]  # fmt: skip


def _switch(backend, family: str, config: Mapping[str, Any]) -> None:
    """What transformers' classes make of tokenizer_config.json, whatever tokenizer.json says."""
    from tokenizers import normalizers, pre_tokenizers

    own = backend.normalizer
    if family == "bert" and isinstance(own, normalizers.BertNormalizer):
        backend.normalizer = cleaning(config)
    elif family == "siglip2" and "Lowercase" not in str(own):
        parts = [normalizers.Lowercase(), *([] if own is None else [own])]
        backend.normalizer = normalizers.Sequence(parts)
    elif family in ("gpt2", "roberta") and isinstance(
        backend.pre_tokenizer, pre_tokenizers.ByteLevel
    ):
        space = bool(config.get("add_prefix_space", False))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
