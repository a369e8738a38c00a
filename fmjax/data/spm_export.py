"""A SentencePiece BPE model as a `tokenizer.json` that gives the same ids."""

from collections.abc import Mapping
from typing import Any

_SPACE = "\u2581"


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, the best-scored result first.

    SentencePiece stores no merges: it joins the neighbours whose union has the best score.
    """
    ranks = {piece: rank for rank, piece in enumerate(scores)}
    pairs = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ranks and right in ranks:
                pairs.append((-score, ranks[left], ranks[right], left, right))
    return [(left, right) for *_, left, right in sorted(pairs)]


def tokenizer_json(
    model: bytes, config: Mapping[str, Any], special: Mapping[str, int]
) -> bytes | None:
    """Contents of `tokenizer.json`, or None if the model has no exact equivalent there.

    An equivalent exists for byte-fallback BPE whose normalisation is only "spaces become ▁, with
    one put in front", which is what LLaMA uses and `train_sentencepiece` makes.

    Args:
      model: contents of `tokenizer.model`.
      config: special tokens and `add_bos_token` / `add_eos_token`.
      special: special tokens (control pieces, the unknown piece, added tokens) to their ids.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, decoders, models, normalizers

    from fmjax.data.tokenizer_hf import HFTokenizer

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer, norm = proto.trainer_spec, proto.normalizer_spec
    bpe = trainer.model_type == trainer.BPE and trainer.byte_fallback
    plain = norm.add_dummy_prefix and not norm.remove_extra_whitespaces
    if not (bpe and plain) or norm.precompiled_charsmap or trainer.treat_whitespace_as_suffix:
        return None
    normal = {p.piece: p.score for p in proto.pieces if p.type == p.NORMAL}
    if any(p.type == p.USER_DEFINED for p in proto.pieces):
        return None  # matched inside the normalised text there, before normalisation here
    vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(normal),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    for token in sorted(special, key=special.__getitem__):
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        if backend.token_to_id(token) != special[token]:
            return None  # ids with a gap before the added tokens
    return HFTokenizer(backend, config, build_post_processor=True)._files()["tokenizer.json"]
