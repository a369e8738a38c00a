"""A model over many examples: batch by batch on the devices, one result for each example."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core import logical
from fmjax.data.tasks.batches import EvalTaskBatches
from fmjax.parallel import DEFAULT_RULES, shard_batch

Pick = Callable[[Any, Mapping[str, jax.Array]], Any]


class Predictor:
    """A compiled forward pass whose results come back to the host.

    Args:
      model_apply: of a model, (variables, **inputs) → output.
      pick: (the model's output, batch) → what is wanted of it, arrays [B, …].
      mesh: the devices that split the batches.
      objective: whose sums are taken along the way where batches have labels.
      rules: how the model lies on the mesh.
    """

    def __init__(
        self,
        model_apply: Callable[..., Any],
        pick: Pick,
        mesh: jax.sharding.Mesh,
        objective: Any = None,
        rules: logical.Rules = DEFAULT_RULES,
    ) -> None:
        self.mesh, self.rules = mesh, rules

        def run(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, dict[str, Any]]:
            outputs: list[Any] = []

            def apply(*args: Any, **kwargs: Any) -> Any:
                outputs.append(model_apply(*args, **kwargs))
                return outputs[-1]

            with logical.use(mesh, rules):
                if objective is None:
                    names = ("input_ids", "attention_mask", "token_type_ids")
                    apply(variables, **{name: batch[name] for name in names if name in batch})
                    return pick(outputs[0], batch), {}
                total, weight, metrics, _ = objective.loss(apply, variables, {}, batch, None)
            return pick(outputs[0], batch), {"loss": (total, weight), **metrics}

        # Every process gets all rows: metrics need the whole data set.
        self._run = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(
        self,
        variables: Any,
        batches: EvalTaskBatches,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> tuple[list[Any], dict[str, float]]:
        """Results in the order of the examples, and the means of the objective.

        Args:
          variables: of the model.
          batches: of `fmjax.data.tasks.eval_task_batches`.
          advance: is told the number of examples after each batch.
        """
        results: list[Any] = [None] * len(batches.order)
        sums: dict[str, np.ndarray] = {}
        place = 0

        def take(values: Any) -> None:
            nonlocal place
            picked, totals = jax.device_get(values)
            rows = len(jax.tree.leaves(picked)[0])
            indices = batches.order[place : place + rows]
            place += rows
            for row, index in enumerate(indices):
                results[index] = jax.tree.map(lambda x: x[row], picked)  # noqa: B023
            for name, pair in totals.items():
                sums[name] = sums.get(name, np.zeros(2)) + np.array(pair, np.float64)
            advance(len(indices))

        # One batch behind the device, which so always has work.
        waiting = None
        for batch in batches:
            values = self._run(variables, shard_batch(batch, self.mesh, self.rules))
            if waiting is not None:
                take(waiting)
            waiting = values
        take(waiting)
        means = {name: float(total / weight) for name, (total, weight) in sums.items() if weight}
        return results, means


@contextlib.contextmanager
def counting(what: str, total: int, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar over examples on stderr; gives the function that moves it on."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from fmjax.train.progress import has_bars

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    shown = show and has_bars(console)
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=total)
        yield lambda rows: bar.advance(task, rows)
