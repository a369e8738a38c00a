"""Preferences: pairs of answers as batches, and how often the better one gets the higher reward."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core import logical
from fmjax.data.tasks import (
    preference_batches,
    preference_eval_batches,
    preference_features,
    read_preferences,
)
from fmjax.evals import mean_interval
from fmjax.objectives import DPO, log_probabilities
from fmjax.parallel import shard_batch
from fmjax.recipes.adaptation import Adapted
from fmjax.recipes.chat.finetune import FinetuneDpo
from fmjax.recipes.chat.task import ChatTask, Ready, held_out
from fmjax.recipes.layout import Layout
from fmjax.recipes.tasks.inference import counting
from fmjax.recipes.tasks.task import Measured
from fmjax.train import Step, TrainState, evaluate


class Dpo(ChatTask):
    """The pairs of a run, encoded."""

    def __init__(self, settings: FinetuneDpo, tokenizer: Any, length: int):
        preference = settings.preference
        self._objective = DPO(preference.beta, preference.label_smoothing, preference.loss)
        train, valid, self.notes = held_out(settings, read_preferences)
        self._settings = settings
        self._train, self._valid = (
            preference_features(part, tokenizer, length) for part in (train, valid)
        )
        self.notes += [f"to train on: {self._train}", f"to measure on: {self._valid}"]
        self.prompts = [valid.prompts[i] for i in self._valid.kept]
        self.wanted = [valid.chosen[i][0]["content"] for i in self._valid.kept]
        self._form = {
            "batch_size": settings.optimization.batch_size,
            "pad_id": tokenizer.pad_token_id or 0,
            "max_length": length,
        }

    def ready(self, adapted: Adapted, layout: Layout) -> Ready:
        if adapted.spec is None:
            # Without an adapter to switch off, the reference is what the weights say now.
            def reference(variables: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
                return log_probabilities(adapted.model.apply, variables, batch)

            self._train, self._valid = (
                part.with_reference(
                    *self._over(part, reference, adapted.variables, layout, "reference")
                )
                for part in (self._train, self._valid)
            )
        batches = preference_batches(
            self._train, seed=self._settings.optimization.seed, **self._form
        )
        valid = preference_eval_batches(self._valid, **self._form)
        per_epoch = len(self._train) / self._form["batch_size"]
        return Ready(batches, valid, self._objective, per_epoch)

    def measure(self, step: Step, state: TrainState, valid: Any) -> Measured:
        """The means of the objective; accuracy and margin with intervals, by drawing pairs."""

        def rewards(variables: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            return self._objective.rewards(step.apply, variables, batch)

        layout = Layout(step.mesh, step.rules)
        chosen, rejected = self._over(self._valid, rewards, state.variables, layout, "rewards")
        margin = chosen - rejected
        intervals = {
            "accuracy": mean_interval(margin > 0),
            "margin": mean_interval(margin),
        }
        return Measured(evaluate(step, state, valid), intervals)

    def _over(
        self,
        features: Any,
        compute: Callable[[Any, Any], tuple[jax.Array, jax.Array]],
        variables: Any,
        layout: Layout,
        what: str,
    ) -> list[np.ndarray]:
        """What `compute` gives for each pair, two arrays f[n] in the order of the features."""

        def run(variables: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            with logical.use(layout.mesh, layout.rules):
                return tuple(compute(variables, batch))

        # Every process gets all rows.
        run = jax.jit(run, out_shardings=NamedSharding(layout.mesh, PartitionSpec()))
        batches = preference_eval_batches(features, **self._form)
        found = []
        with counting(what, len(features), jax.process_index() == 0) as advance:
            for batch in batches:
                placed = shard_batch(batch, layout.mesh, layout.rules)
                found.append(jax.device_get(run(variables, placed)))
                advance(int(batch["example_weight"].sum()))
        return [np.array(batches.in_order(side)) for side in zip(*found, strict=True)]
