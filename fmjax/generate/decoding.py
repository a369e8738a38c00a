"""The decoding loop: prefill, then one token a step, in static shapes and on the device.

Shapes: B rows, P prompt slots, N slots for new tokens, S = P + N cache slots, V vocabulary. The
key–value cache is updated in place inside a `while_loop` that ends as soon as every row has.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from fmjax.core import tree
from fmjax.generate import sampling
from fmjax.generate.prompts import Prompts
from fmjax.nn.attention import squeeze_cache
from fmjax.nn.param import abstract
from fmjax.nn.stack import unstack

Variables = dict[str, Any]


@flax.struct.dataclass
class Controls:
    """What steers a run. Fields marked static are compiled in.

    Attributes:
      numbers: from `Sampling.numbers`.
      eos: i32 [E], tokens that end a row.
      pad: i32 [], fills a row that has ended.
      key: PRNG key, or None for greedy decoding.
      new_slots: static, N.
      logprobs: static, whether to keep log-probabilities.
    """

    numbers: dict[str, jax.Array]
    eos: jax.Array
    pad: jax.Array
    key: jax.Array | None
    new_slots: int = flax.struct.field(pytree_node=False)
    logprobs: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class State:
    """Where a run stands; the carry of the loop.

    Attributes:
      step: i32 [], tokens chosen so far; the cache holds the prompt and all but the last of them.
      tokens: i32 [B, N], pad where nothing was chosen.
      lengths: i32 [B], tokens of each row, the one that ended it included.
      finished: bool [B].
      cache: the model's "cache" collection.
      seen: bool [B, V], tokens of the prompt and the text so far; None without a penalty.
      logprobs: f32 [B, N], the model's own log-probability of each token; None unless asked for.
    """

    step: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    finished: jax.Array
    cache: Any
    seen: jax.Array | None
    logprobs: jax.Array | None


def for_decoding(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
    """The same model laid out for decoding: one subtree a layer, weights in the compute dtype.

    A scan over stacked layers would copy every weight and the whole cache at every token.
    `generate` and `stream` call this themselves; call it once yourself (and let go of the
    original) where many calls share the weights or memory is short. Idempotent.

    Args:
      model: from `build` or `from_pretrained`.
      variables: {"params", optionally "adapter"}.

    Returns:
      (model, variables), the given ones if nothing has to change.
    """
    ex = model.execution
    decoder = model.clone(execution=dataclasses.replace(ex, scan_layers=False, remat="none"))
    stacks = _stacks(model) if ex.scan_layers else ()
    if not stacks and all(
        not _castable(path) or x.dtype == ex.dtype
        for path, x in tree.flatten(variables["params"]).items()
    ):
        return decoder, variables
    return decoder, _lay_out(variables, stacks, ex.dtype)


@functools.lru_cache
def _stacks(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """(name, number of layers) of the model's stacks, read off the "layers" axes."""
    found = []
    for name, subtree in abstract(model, model.dummy_inputs()).items():
        leaves = list(tree.flatten({"": subtree}).values())
        if all(leaf.axes[:1] == ("layers",) for leaf in leaves):
            found.append((name, leaves[0].shape[0]))
    return tuple(found)


def _castable(path: str) -> bool:
    """Weights that the primitives cast to the compute dtype at each use. Norms keep theirs."""
    return path.endswith(("/kernel", "/weight", "/embedding"))


@functools.partial(jax.jit, static_argnames=("stacks", "dtype"))
def _lay_out(variables: Variables, stacks: tuple[tuple[str, int], ...], dtype: Any) -> Variables:
    for name, layers in stacks:
        variables = {c: unstack(v, name, layers) for c, v in variables.items()}

    def cast(path: str, x: Any) -> Any:
        return x.astype(dtype) if _castable(path) and isinstance(x, jax.Array) else x

    return variables | {"params": tree.map_with_path(cast, variables["params"])}


def _prefill(model: nn.Module, variables: Variables, prompts: Prompts, controls: Controls) -> State:
    B, P = prompts.ids.shape
    N = controls.new_slots
    output, filled = model.apply(
        variables,
        input_ids=prompts.ids,
        attention_mask=prompts.valid(P + N),
        position_ids=prompts.positions(),
        cache_index=0,
        logits_to_keep=1,
        mutable=["cache"],
    )
    logits_BV = output.logits[:, 0]
    seen = None
    if "repetition_penalty" in controls.numbers:
        V = logits_BV.shape[-1]
        ids_BP = jnp.where(prompts.valid(P) == 1, prompts.ids, V)
        seen = jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], ids_BP].set(True, mode="drop")
    state = State(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((B, N), controls.pad, jnp.int32),
        lengths=jnp.zeros((B,), jnp.int32),
        finished=jnp.zeros((B,), bool),
        cache=squeeze_cache(filled["cache"]),
        seen=seen,
        logprobs=jnp.zeros((B, N), jnp.float32) if controls.logprobs else None,
    )
    return _choose(state, logits_BV, controls)


def _choose(state: State, logits_BV: jax.Array, controls: Controls) -> State:
    """Adds one token to every row that has not ended."""
    step, live = state.step, ~state.finished
    scores_BV = sampling.process(logits_BV, controls.numbers, state.seen)
    if controls.key is None:
        token_B = jnp.argmax(scores_BV, -1).astype(jnp.int32)
    else:
        token_B = sampling.draw(scores_BV, jax.random.fold_in(controls.key, step))
    token_B = jnp.where(live, token_B, controls.pad)
    rows = jnp.arange(token_B.shape[0])
    seen, logprobs = state.seen, state.logprobs
    if seen is not None:
        seen = seen.at[rows, token_B].set(True)
    if logprobs is not None:
        own = jax.nn.log_softmax(logits_BV)[rows, token_B]
        logprobs = logprobs.at[:, step].set(jnp.where(live, own, 0))
    return state.replace(
        step=step + 1,
        tokens=state.tokens.at[:, step].set(token_B),
        lengths=state.lengths + live,
        finished=state.finished | jnp.isin(token_B, controls.eos),
        seen=seen,
        logprobs=logprobs,
    )


def _decode(
    model: nn.Module,
    variables: Variables,
    prompts: Prompts,
    controls: Controls,
    state: State,
    until: jax.Array,
) -> State:
    P = prompts.ids.shape[1]
    valid_BS = prompts.valid(P + controls.new_slots)

    def unfinished(state: State) -> jax.Array:
        return (state.step < until) & ~jnp.all(state.finished)

    def step(state: State) -> State:
        fed = state.step - 1  # the last token chosen, which the cache lacks
        output, updated = model.apply(
            {**variables, "cache": state.cache},
            input_ids=jax.lax.dynamic_slice_in_dim(state.tokens, fed, 1, axis=1),
            attention_mask=valid_BS,
            position_ids=(prompts.lengths + fed)[:, None],
            cache_index=P + fed,
            mutable=["cache"],
        )
        return _choose(state.replace(cache=updated["cache"]), output.logits[:, 0], controls)

    return jax.lax.while_loop(unfinished, step, state)


@functools.partial(jax.jit, static_argnames="model")
def prefill(model: nn.Module, variables: Variables, prompts: Prompts, controls: Controls) -> State:
    """Runs the prompts and chooses the first token of each row."""
    return _prefill(model, variables, prompts, controls)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def decode(
    model: nn.Module,
    variables: Variables,
    prompts: Prompts,
    controls: Controls,
    state: State,
    until: jax.Array,
) -> State:
    """Goes on until every row has `until` (i32 []) tokens or has ended; consumes `state`."""
    return _decode(model, variables, prompts, controls, state, until)


@functools.partial(jax.jit, static_argnames="model")
def run(
    model: nn.Module, variables: Variables, prompts: Prompts, controls: Controls, until: jax.Array
) -> State:
    """`prefill` and `decode` as one program; the cache is not returned."""
    state = _prefill(model, variables, prompts, controls)
    return _decode(model, variables, prompts, controls, state, until).replace(cache=None)
