"""Text in: tokenizers, sources, shipped corpora, packing and resumable batches.

Names are loaded on first use, so that `import fmjax.data` costs nothing.
"""

import importlib

_HOME = {
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "check_fits": "tokenizer",
    "HFTokenizer": "tokenizer_hf",
    "SentencePieceTokenizer": "tokenizer_spm",
    "SiglipTokenizer": "tokenizer_siglip",
    "train_clip_tokenizer": "clip_tokenizer",
    "train_sentencepiece": "train_tokenizer",
    "train_wordpiece": "wordpiece",
    "Words": "words",
    "Source": "sources",
    "TextSource": "sources",
    "JsonlSource": "sources",
    "TfdsSource": "sources",
    "build_text_dataset": "tfds_text",
    "load_corpus": "corpora",
    "sentiment": "corpora",
    "train_validation_split": "corpora",
    "TokenizedDocuments": "tokens",
    "tokenize": "tokens",
    "PackedDocuments": "packing",
    "TextBatches": "loader",
    "EvalBatches": "loader",
    "text_batches": "loader",
    "eval_batches": "loader",
    "DEFAULT_TEMPLATE": "chat_tokens",
    "encode_chat": "chat_tokens",
    "encode_chats": "chat_tokens",
    "use_default_template": "chat_tokens",
    "ChatDocuments": "chat_packing",
    "chat_batches": "chat_packing",
    "chat_documents": "chat_packing",
    "chat_eval_batches": "chat_packing",
    "DevicePrefetch": "device",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"fmjax.data.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
