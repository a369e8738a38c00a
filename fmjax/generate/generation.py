"""`generate` and `stream`: token ids in, continuations out."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from fmjax.core.adapter import COLLECTION
from fmjax.core.errors import ConfigError
from fmjax.generate import decoding
from fmjax.generate.prompts import Prompts, bucket, left_pad, token_rows
from fmjax.generate.sampling import GREEDY, Sampling
from fmjax.generate.text import Decoder, TextStream
from fmjax.nn import prefix_port, prompt_port

TokenIds = int | Sequence[int] | None
# Steps on the device between two looks at the text, when stop strings make the host look.
_STOP_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """B continuations of at most N tokens; the prompts are not repeated.

    Attributes:
      tokens: i32 [B, N], the pad token beyond each row's length.
      lengths: i32 [B], tokens of each row, the EOS token (or the token that completed a stop
        string) included.
      logprobs: f32 [B, N] on request: log-probability of each token under the model itself, before
        temperature and filters; 0 beyond the length.
      texts: with a tokenizer: each continuation without EOS and stop string, as it reads after its
        prompt (a space between the two is part of it).
    """

    tokens: np.ndarray
    lengths: np.ndarray
    logprobs: np.ndarray | None = None
    texts: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class _Run:
    """A checked request, ready for the device."""

    model: nn.Module
    variables: dict[str, Any]
    rows: list[np.ndarray]
    prompts: Prompts
    controls: decoding.Controls
    limit: int

    @property
    def operands(self) -> tuple[Any, ...]:
        return self.model, self.variables, self.prompts, self.controls


def generate(
    model: nn.Module,
    variables: dict[str, Any],
    input_ids: Any,
    *,
    attention_mask: Any = None,
    max_new_tokens: int = 128,
    sampling: Sampling = GREEDY,
    rng: jax.Array | None = None,
    eos_token_id: TokenIds = None,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    stop: str | Sequence[str] = (),
    tokenizer: Decoder | None = None,
    return_logprobs: bool = False,
) -> GenerateOutput:
    """Continues prompts, all rows together in one compiled program.

    Programs are kept and shared by all calls with the same number of rows and lengths in the same
    buckets. A row's tokens depend on its own prompt (and its number, when sampling), not on the
    other rows or on padding; but for RoPE of the types "dynamic" and "longrope", whose frequencies
    are those of the longest row, as in transformers.

    Args:
      model: a decoder from `build` or `from_pretrained`.
      variables: {"params", optionally "adapter"}, on one device or sharded.
      input_ids: B rows of token ids of any lengths, or an integer array [B, T].
      attention_mask: 0/1 [B, T], which tokens of an array count; padding may stand anywhere.
      max_new_tokens: N.
      sampling: greedy by default.
      rng: PRNG key, needed unless greedy; the same key gives the same tokens.
      eos_token_id: one or several ids that end a row; default the model config's; () never ends.
      pad_token_id: default the model config's, else the first EOS id, else 0.
      bos_token_id: starts an empty prompt; default the model config's.
      stop: strings that end a row, which need a tokenizer; a special token's text is one more EOS.
      tokenizer: gives `texts`.
      return_logprobs: gives `logprobs`.

    Raises:
      ConfigError: arguments that do not fit together, or more tokens than the model has positions.
      DataError: prompts that are not rows of ids below the model's vocab_size.
    """
    stop, ends = _stops(stop, tokenizer)
    run = _prepare(
        model,
        variables,
        token_rows(input_ids, attention_mask, *_vocabulary(model, bos_token_id)),
        max_new_tokens,
        sampling,
        rng,
        eos_token_id,
        pad_token_id,
        return_logprobs,
        ends,
    )
    texts = [TextStream(tokenizer, row, stop) for row in run.rows] if tokenizer else []
    if stop:
        *_, (tokens, lengths, logprobs, _) = _chunks(run, texts, _STOP_CHUNK)
    else:
        tokens, lengths, logprobs = _to_host(run, decoding.run(*run.operands, run.limit))
        for i, text in enumerate(texts):
            text.push(_without_eos(run, tokens[i, : lengths[i]]))
            text.flush()
    return GenerateOutput(
        tokens=tokens,
        lengths=lengths,
        logprobs=logprobs,
        texts=[text.text for text in texts] if tokenizer else None,
    )


def stream(
    model: nn.Module,
    variables: dict[str, Any],
    prompt_ids: Sequence[int],
    tokenizer: Decoder,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling = GREEDY,
    rng: jax.Array | None = None,
    eos_token_id: TokenIds = None,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    stop: str | Sequence[str] = (),
    every: int = 1,
) -> Iterator[str]:
    """Continues one prompt and yields its text as it comes.

    The pieces join to the text that `generate` gives for the same arguments. A piece never ends
    inside a character, and holds nothing of a stop string.

    Args:
      prompt_ids: token ids of one prompt.
      every: tokens between two pieces; more keeps an accelerator busier.
      others: as in `generate`.

    Raises:
      ConfigError, DataError: as `generate`, before the first piece is asked for.
    """
    stop, ends = _stops(stop, tokenizer)
    if not _is_count(every):
        raise ConfigError(f"every={every!r} must be a positive integer")
    run = _prepare(
        model,
        variables,
        token_rows([prompt_ids], None, *_vocabulary(model, bos_token_id)),
        max_new_tokens,
        sampling,
        rng,
        eos_token_id,
        pad_token_id,
        False,
        ends,
    )
    text = TextStream(tokenizer, run.rows[0], stop)
    return (pieces[0] for *_, pieces in _chunks(run, [text], every) if pieces[0])


def _chunks(
    run: _Run, texts: Sequence[TextStream], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None, list[str]]]:
    """Decodes `size` steps at a time; yields (tokens, lengths, logprobs, new text of each row).

    A row ends where its text meets a stop string; what was decoded beyond that is taken back.
    """
    state = decoding.prefill(*run.operands)
    done = np.zeros(len(run.rows), np.int64)  # tokens of each row that its text has
    ended = np.zeros(len(run.rows), bool)
    while True:
        tokens, lengths, logprobs = _to_host(run, state)
        step = int(state.step)
        finished = np.array(state.finished) | (step >= run.limit)
        pieces = [""] * len(texts)
        for i, text in enumerate(texts):
            while not ended[i] and done[i] < lengths[i]:
                pieces[i] += text.push(_without_eos(run, tokens[i, done[i] : done[i] + 1]))
                done[i] += 1
                ended[i] = text.stopped
            if finished[i] and not ended[i]:
                pieces[i] += text.flush()
                ended[i] = True
            tokens[i, done[i] :] = run.controls.pad
            if logprobs is not None:
                logprobs[i, done[i] :] = 0
        yield tokens, done.astype(np.int32), logprobs, pieces
        if ended.all():
            return
        until = min(step + size, run.limit)
        state = decoding.decode(*run.operands, state.replace(finished=ended), until)


def _to_host(run: _Run, state: decoding.State) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Copies, since the state's own buffers are given up to the next chunk."""
    logprobs = None if state.logprobs is None else np.array(state.logprobs)[:, : run.limit]
    return np.array(state.tokens)[:, : run.limit], np.array(state.lengths), logprobs


def _without_eos(run: _Run, ids: np.ndarray) -> np.ndarray:
    return ids[~np.isin(ids, run.controls.eos)]


def _prepare(
    model: nn.Module,
    variables: dict[str, Any],
    rows: list[np.ndarray],
    max_new_tokens: int,
    sampling: Sampling,
    rng: jax.Array | None,
    eos_token_id: TokenIds,
    pad_token_id: int | None,
    logprobs: bool,
    ends: Sequence[int],
) -> _Run:
    config = model.config
    if config.head != "causal-lm":
        raise ConfigError(
            f"{type(model).__name__} with head={config.head!r} does not predict the next token; "
            "generate with a causal language model"
        )
    if "params" not in variables:
        raise ConfigError('variables has no "params"; pass {"params": params}')
    if not _is_count(max_new_tokens):
        raise ConfigError(f"max_new_tokens={max_new_tokens!r} must be a positive integer")
    if rng is None and not sampling.greedy:
        raise ConfigError(
            f"sampling at temperature={sampling.temperature} needs rng=jax.random.key(seed)"
        )
    longest = max(map(len, rows))
    positions, adapter = config.position_limit, variables.get(COLLECTION, {})
    virtual = (
        ("prefix", prefix_port.length(adapter)),
        ("soft prompt", prompt_port.length(adapter)),
    )
    first = sum(length for _, length in virtual)
    # The last token is chosen, and not read.
    if positions is not None and first + longest + max_new_tokens - 1 > positions:
        before = "".join(f"a {name} of {length}, " for name, length in virtual if length)
        raise ConfigError(
            f"{before}a prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the "
            f"model's {positions} positions; shorten one of them"
        )
    eos = _ids(eos_token_id, "eos_token_id")
    if eos_token_id is None:
        eos = _known(config, "eos_token_id")
    eos = (*eos, *(i for i in ends if i not in eos))
    if pad_token_id is None:
        pad_token_id = (*_known(config, "pad_token_id"), *eos, 0)[0]
    for name, ids in (("eos_token_id", eos), ("pad_token_id", _ids(pad_token_id, "pad_token_id"))):
        for i in ids:
            if not 0 <= i < config.vocab_size:
                raise ConfigError(
                    f"{name}={i} is outside the model's vocabulary of {config.vocab_size}"
                )
    decoder, laid_out = decoding.for_decoding(model, variables)
    controls = decoding.Controls(
        numbers=sampling.numbers(),
        eos=np.array(eos, np.int32),
        pad=np.int32(pad_token_id),
        key=None if sampling.greedy else rng,
        new_slots=bucket(max_new_tokens),
        logprobs=logprobs,
    )
    return _Run(decoder, laid_out, rows, left_pad(rows, pad_token_id), controls, max_new_tokens)


def _vocabulary(model: nn.Module, bos_token_id: int | None) -> tuple[int, int | None]:
    bos = _ids(model.config.bos_token_id if bos_token_id is None else bos_token_id, "bos_token_id")
    return model.config.vocab_size, bos[0] if bos else None


def _known(config: Any, name: str) -> tuple[int, ...]:
    """Ids of a config that the model can say: one cut down from a large model keeps the ids of
    that, and LLaMA's first conversions have -1 for none."""
    ids = _ids(getattr(config, name), name)
    return tuple(i for i in ids if 0 <= i < config.vocab_size)


def _ids(value: TokenIds, name: str) -> tuple[int, ...]:
    ids = () if value is None else (value,) if isinstance(value, int | np.integer) else tuple(value)
    if not all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in ids):
        raise ConfigError(f"{name}={value!r} must be a token id or several")
    return tuple(int(i) for i in ids)


def _stops(
    stop: str | Sequence[str], tokenizer: Decoder | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(strings to look for in the text, ids of those that are special tokens, which it lacks)."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) and s for s in stops):
        raise ConfigError(f"stop={stop!r} must be a non-empty string or several")
    if stops and tokenizer is None:
        raise ConfigError("stop strings are looked for in the text; pass tokenizer=, too")
    special = {s: i for s in stops if (i := _special(tokenizer, s)) is not None}
    names = [tokenizer.id_to_token(i) for i in getattr(tokenizer, "special_ids", ())]
    for s in stops:
        if s not in special and (inside := [name for name in names if name in s]):
            raise ConfigError(
                f"stop={s!r} holds the special token {inside[0]!r}, which texts leave out; give "
                "the token alone"
            )
    return tuple(s for s in stops if s not in special), tuple(special.values())


def _special(tokenizer: Decoder, text: str) -> int | None:
    """The id of a special token from its text; None where it is none."""
    find = getattr(tokenizer, "token_to_id", getattr(tokenizer, "convert_tokens_to_ids", None))
    i = None if find is None else find(text)
    # Tokenizers of transformers give the id of <unk> for what is no token.
    if i is None or tokenizer.decode([i], skip_special_tokens=False).strip() != text.strip():
        return None
    return None if tokenizer.decode([i], skip_special_tokens=True) else i


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0
