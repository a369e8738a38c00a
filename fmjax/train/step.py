"""One training step for every objective and every adaptation."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError
from fmjax.parallel import DEFAULT_RULES, shard_batch
from fmjax.train import offload as offloading
from fmjax.train.donation import check_donation
from fmjax.train.gradient_cache import check_parts, loss_in_parts
from fmjax.train.gradients import global_norm, summed_gradients
from fmjax.train.placement import (
    inherited_shardings,
    put,
    split_further,
    structs,
    variable_shardings,
)
from fmjax.train.state import TrainState
from fmjax.train.trainable import Trainable, split

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class Objective(Protocol):
    """A pair of pure functions. `decomposes = False` says that a batch cannot be cut in parts.

    An objective may also have `summarize(means) → means`, applied to the means of an evaluation;
    `unit`, "tokens" unless it says "examples": what the speed of a run is measured in;
    `project(trained, extra) → trained`, applied to the trained variables after each update, such
    as a bound on one of them; and, if it does not decompose, `embed` and `compare`, see
    `fmjax.train.gradient_cache`. One put around another names it `objective`; if the other's batch
    cannot come in parts within it, `undivided` says why.
    """

    def init(self, variables: Any) -> Any: ...

    def loss(
        self, apply: Callable[..., Any], variables: Any, extra: Any, batch: Batch, rng: Any
    ) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]], Any]: ...


@dataclasses.dataclass(eq=False)
class Step:
    """`state, metrics = step(state, batch)`; see `make_step`."""

    apply: Callable[..., Any]
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh | None
    rules: logical.Rules
    abstract: Mapping[str, Any] | None
    trainable: Trainable | None
    accumulate: int
    clip_norm: float | None
    learning_rate: optax.ScalarOrSchedule | None
    offload: str | None

    def __post_init__(self) -> None:
        self._updates: dict[Any, Callable[..., Any]] = {}
        self._evaluate = jax.jit(self._sums)
        # Parts of which the gradients are summed, and parts in which a loss of the whole batch
        # embeds it.
        decomposes = getattr(self.objective, "decomposes", True)
        self._summed, self._embedded = (self.accumulate, 1)[:: 1 if decomposes else -1]
        self._checked: set[int] = set()

    @property
    def unit(self) -> str:
        """What the objective's batches are made of: "tokens" or "examples"."""
        return getattr(self.objective, "unit", "tokens")

    # State.

    def init(self, variables: Mapping[str, Any], rng: jax.Array) -> TrainState:
        """The state before the first step; optimizer state is created sharded.

        Nothing is copied: the state holds the arrays of `variables` themselves, and the first step
        consumes the trained ones. Frozen arrays stay valid for their owner.

        Args:
          variables: {"params": …, "adapter": …?}, nested dicts of arrays.
          rng: typed key, `jax.random.key(seed)`.

        Raises:
          ConfigError: no trained parameter, a trained one that is not floating, an untyped key.
          ShardingError: a large array that is not on the mesh and whose axes are unknown.
        """
        if not jnp.issubdtype(getattr(rng, "dtype", None), jax.dtypes.prng_key):
            raise ConfigError("rng must be a typed key: jax.random.key(seed)")
        if self.mesh is None:
            variables = jax.tree.map(jnp.asarray, variables)
        else:
            variables = put(variables, self._shardings(variables))
            rng = put(rng, self._replicated())
        like = self.abstract_state(variables)
        shardings = jax.tree.map(lambda x: x.sharding, (like.opt_state, like.extra))
        opt_state, extra = jax.jit(self._init, out_shardings=shardings)(variables)
        zero = lambda: put(jnp.int32(0), self._replicated())  # noqa: E731
        return TrainState(zero(), variables, opt_state, extra, rng, zero())

    def abstract_state(self, variables: Mapping[str, Any]) -> TrainState:
        """The state's shapes, dtypes and shardings, without computing anything.

        Args:
          variables: nested dicts of arrays, `ShapeDtypeStruct`s or `ParamSpec`s.

        Returns:
          A `TrainState` of `ShapeDtypeStruct`s: for `lower`, and to restore a checkpoint into.
        """
        shardings = None if self.mesh is None else self._shardings(variables)
        variables = structs(variables, shardings)
        opt_state, extra = jax.eval_shape(self._init, variables)
        rng = jax.eval_shape(lambda: jax.random.key(0))
        small = (jax.ShapeDtypeStruct((), jnp.int32), rng)
        if self.mesh is not None:
            trained = split_further(self.split(variables)[0], self.mesh, self.rules)
            opt_state = self._inherit(opt_state, trained)
            extra = self._inherit(extra, variables)
            small = structs(small, jax.tree.map(lambda _: self._replicated(), small))
        if self.offload:
            opt_state = offloading.on_host(opt_state, variables)
        return TrainState(small[0], variables, opt_state, extra, small[1], small[0])

    def split(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trained, frozen) parts of the variables, by the rules over paths."""
        return split(variables, self.trainable)

    def _init(self, variables: Any) -> tuple[Any, Any]:
        trained, _ = self.split(variables)
        for path, leaf in tree.flatten(trained).items():
            if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(leaf)):
                raise ConfigError(f"{path} is not floating point; freeze it: ({path!r}, False)")
        # Copies, so that no buffer is donated twice (an EMA teacher starts as the parameters).
        return jax.tree.map(
            jnp.copy, (self.optimizer.init(trained), self.objective.init(variables))
        )

    def _shardings(self, variables: Any) -> Any:
        return variable_shardings(variables, self.mesh, self.rules, self.abstract)

    def _inherit(self, state: Any, params: Any) -> Any:
        return structs(state, inherited_shardings(state, params, self.mesh))

    def _replicated(self) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def place(self, batch: Batch, parts: int = 1) -> dict[str, Any]:
        """See `fmjax.parallel.shard_batch`."""
        return shard_batch(batch, self.mesh, self.rules, parts)

    # The step itself.

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update. Consumes (donates) the trained arrays, optimizer state and extra of `state`;
        the first one warns where it does not, see `fmjax.train.donation`.

        Returns:
          The next state, and f32 scalars left on the device: loss, grad_norm (before clipping),
          tokens (the batch's weight; "weight" where examples are counted), learning_rate where a
          schedule is known, skipped (updates so far that were not finite), and the objective's own.
        """
        update, arguments, frozen = self._prepare(state, batch)
        if id(update) not in self._checked:
            # The call below takes the program that is compiled here: nothing is compiled twice.
            check_donation(update.lower(*arguments).compile(), arguments[0])
            self._checked.add(id(update))
        (trained, opt_state, extra), (step, skipped), metrics = update(*arguments)
        return TrainState(
            step, tree.combine(trained, frozen), opt_state, extra, state.rng, skipped
        ), metrics

    def trace(self, state: TrainState, batch: Batch) -> jax.stages.Traced:
        """The step traced, for its jaxpr; arguments as of `lower`."""
        update, arguments, _ = self._prepare(state, batch)
        return update.trace(*arguments)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """The step traced and lowered, for `.compile()`, its memory and its cost.

        Args:
          state: a state, or `abstract_state(…)`.
          batch: arrays, or `ShapeDtypeStruct`s of the global batch.
        """
        return self.trace(state, batch).lower()

    def compile(self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
        """The step compiled ahead of time; arguments as of `lower`.

        Warns where the compiler does not update the donated arrays in place, see
        `fmjax.train.donation`.
        """
        update, arguments, _ = self._prepare(state, batch)
        compiled = update.lower(*arguments).compile()
        check_donation(compiled, arguments[0])
        return compiled

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """{name: (sum, weight)} of the objective on one batch, without dropout and gradient."""
        return self._evaluate(state.variables, state.extra, self.place(batch))

    def _prepare(self, state: TrainState, batch: Batch) -> tuple[Callable[..., Any], Any, Any]:
        # Frozen arrays are inputs only: they are neither donated nor given back.
        trained, frozen = self.split(state.variables)
        donated = (trained, state.opt_state, state.extra)
        kept = (frozen, state.step, state.rng, state.skipped)
        layout = jax.tree.structure((donated, kept))
        if layout not in self._updates:
            shardings = [None, None, None]
            if self.mesh is not None:
                shardings = [jax.tree.map(lambda x: x.sharding, part) for part in donated]
            elif self.offload:
                shardings[1] = jax.tree.map(lambda x: x.sharding, state.opt_state)
            self._updates[layout] = jax.jit(
                partial(self._update, shardings),
                donate_argnums=0,
                out_shardings=(tuple(shardings), self._replicated(), self._replicated()),
            )
        arguments = (donated, kept, self.place(batch, self.accumulate))
        return self._updates[layout], arguments, frozen

    def _update(self, shardings: Any, donated: Any, kept: Any, batch: Batch) -> Any:
        trained, opt_state, extra = donated
        update = self.optimizer.update
        if self.offload:
            # A memory is part of a type, which without a mesh is not known from the arguments.
            opt_state = offloading.move(opt_state, shardings[1], offloading.HOST)
            update = offloading.from_host(update, shardings[1])
            donated = (trained, opt_state, extra)
        frozen, step, rng, skipped = kept
        with self._layout():
            sums, new_extra = summed_gradients(
                partial(self._loss, frozen),
                trained,
                extra,
                batch,
                jax.random.fold_in(rng, step),
                self._summed,
                shardings[0],
            )
        weight = sums["weight"]
        norm = global_norm(sums["grads"]) / weight
        # A batch without targets (weight 0) gives NaN here: there is nothing to learn from it.
        finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
        clip = 1 if self.clip_norm is None else jnp.minimum(1, self.clip_norm / norm)

        def apply(new_extra: Any, grads: Any) -> Any:
            grads = jax.tree.map(lambda g, p: (g * (clip / weight)).astype(p.dtype), grads, trained)
            updates, new_opt_state = update(grads, opt_state, trained)
            new = optax.apply_updates(trained, updates)
            if hasattr(self.objective, "project"):
                new = self.objective.project(new, new_extra)
            return new, new_opt_state, new_extra

        # A branch updates in place on TPUs and CPUs, where selecting per leaf copies both moments
        # first (2.3 × parameters of temporaries, not 1). On GPUs the branch would copy weights and
        # moments (LLaMA-1B on an H100: 32.2 GiB, not 21.1). What is offloaded cannot be selected.
        with self._layout():
            if logical.platform() == "gpu" and not self.offload:
                taken = apply(new_extra, sums["grads"])
                new = jax.tree.map(lambda n, old: jnp.where(finite, n, old), taken, donated)
            else:
                new = jax.lax.cond(finite, apply, lambda *_: donated, new_extra, sums["grads"])
        now_skipped = skipped + (~finite).astype(jnp.int32)
        metrics = {"loss": sums["loss"] / weight}
        metrics |= {name: total / w for name, (total, w) in sums["metrics"].items()}
        metrics |= {"grad_norm": norm, "tokens" if self.unit == "tokens" else "weight": weight}
        if self.learning_rate is not None:
            rate = self.learning_rate
            metrics["learning_rate"] = rate(step - skipped) if callable(rate) else rate
        metrics["skipped"] = now_skipped
        metrics = {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}
        return new, (step + 1, now_skipped), metrics

    def _loss(self, frozen: Any, trained: Any, extra: Any, batch: Batch, rng: jax.Array) -> Any:
        variables = tree.combine(trained, frozen)
        loss = self.objective.loss
        if self._embedded > 1:
            loss = partial(loss_in_parts, self.objective, self._embedded)
        total, *aux = loss(self.apply, variables, extra, batch, rng)
        return total.astype(jnp.float32), tuple(aux)

    def _sums(self, variables: Any, extra: Any, batch: Batch) -> dict[str, Any]:
        with self._layout():
            total, weight, metrics, _ = self.objective.loss(
                self.apply, variables, extra, batch, None
            )
        return {"loss": (total, weight), **metrics}

    def _layout(self) -> Any:
        return logical.use(self.mesh, self.rules)


def make_step(
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
    rules: logical.Rules | None = None,
    abstract: Mapping[str, Any] | None = None,
    trainable: Trainable | None = None,
    accumulate: int = 1,
    clip_norm: float | None = 1.0,
    learning_rate: optax.ScalarOrSchedule | None = None,
    offload: str | None = None,
) -> Step:
    """Builds the jitted, donating, sharded training step.

    The loss and the gradient are sums over the global batch, divided once by the sum of weights:
    accumulation and data parallelism give the same update as one large batch. An update whose loss
    or gradient norm is not finite leaves parameters, optimizer and extra as they were and is
    counted in `state.skipped`. Step t of a run draws its randomness from fold_in(state.rng, t).

    Args:
      model: a Linen module, or its `apply(variables, rngs=…, **inputs)`.
      objective: see `Objective`.
      optimizer: an Optax transformation, for example `fmjax.train.adamw`; without clipping.
      mesh: devices; None computes where the arrays are.
      rules: logical axes → mesh axes; default `fmjax.parallel.DEFAULT_RULES`.
      abstract: {"params": nested dict of `ParamSpec`}, to lay out parameters that `init` receives
        off the mesh. Parameters that were created on it need none.
      trainable: ordered (regex, bool) over paths such as "params/h/mlp/c_fc/kernel"; every path
        must be covered. Or `fmjax.train.freeze(…)`. Default: the adapter (without its constants)
        if there is one, else all of "params".
      accumulate: microbatches that a batch is cut into. A contrastive loss, which needs the whole
        batch, is given all embeddings, computed in so many parts, twice (a gradient cache).
      clip_norm: bound on the global norm of the mean gradient; None does not clip.
      learning_rate: of the optimizer, only to report it.
      offload: "optimizer" keeps the optimizer's state in pinned host memory, fetches it for the
        update, when the activations are gone, and puts it back; that takes the time of the copies.

    Raises:
      ConfigError: accumulation of an objective that does not decompose, numbers out of range, or
        offloading on a backend without pinned host memory.
    """
    if accumulate < 1:
        raise ConfigError(f"accumulate is {accumulate}; it must be at least 1")
    if clip_norm is not None and not clip_norm > 0:
        raise ConfigError(f"clip_norm is {clip_norm}; it must be positive, or None")
    check_parts(objective, accumulate)
    offloading.check(offload, mesh)
    return Step(
        getattr(model, "apply", model),
        objective,
        optimizer,
        mesh=mesh,
        rules=DEFAULT_RULES if rules is None else rules,
        abstract=abstract,
        trainable=trainable,
        accumulate=accumulate,
        clip_norm=clip_norm,
        learning_rate=learning_rate,
        offload=offload,
    )
