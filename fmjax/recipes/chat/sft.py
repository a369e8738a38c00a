"""Instruction tuning: conversations as batches, and how well their answers are predicted."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.core import logical
from fmjax.data import chat_batches, chat_documents, chat_eval_batches
from fmjax.data.tasks import read_conversations
from fmjax.evals import mean_interval, sums_interval
from fmjax.objectives import CausalLM, next_token_targets
from fmjax.objectives.cross_entropy import is_top, nll_and_logsumexp
from fmjax.recipes.adaptation import Adapted
from fmjax.recipes.chat.finetune import FinetuneSft
from fmjax.recipes.chat.task import ChatTask, Ready, held_out
from fmjax.recipes.layout import Layout
from fmjax.recipes.tasks.task import Measured
from fmjax.train import Step, TrainState, evaluate


class Sft(ChatTask):
    """The conversations of a run, encoded."""

    def __init__(self, settings: FinetuneSft, tokenizer: Any, length: int):
        train, valid, self.notes = held_out(settings, read_conversations)
        self._settings, self._length = settings, length
        self._train, self._valid = (
            chat_documents(part.messages, tokenizer, length) for part in (train, valid)
        )
        self.notes += [f"to train on: {self._train}", f"to measure on: {self._valid}"]
        # Each up to its last answer.
        last = [_last_answer(valid.messages[i]) for i in self._valid.kept]
        talks = [valid.messages[i] for i in self._valid.kept]
        self.prompts = [talk[:end] for talk, end in zip(talks, last, strict=True)]
        self.wanted = [talk[end]["content"] for talk, end in zip(talks, last, strict=True)]

    def ready(self, adapted: Adapted, layout: Layout) -> Ready:
        optimization = self._settings.optimization
        form = {"batch_size": optimization.batch_size, "sequence_length": self._length}
        batches = chat_batches(self._train, seed=optimization.seed, **form)
        config = adapted.model.config
        objective = CausalLM(
            router_loss=getattr(config, "router_aux_loss_coef", 0.0),
            experts_per_token=getattr(config, "num_experts_per_tok", 1),
        )
        rows = batches.settings["rows"]
        valid = chat_eval_batches(self._valid, **form)
        return Ready(batches, valid, objective, rows / optimization.batch_size)

    def measure(self, step: Step, state: TrainState, valid: Any) -> Measured:
        """The means of the objective, and the share of conversations whose answers greedy decoding
        would give word by word; intervals by drawing conversations."""
        found = _by_conversation(step, state, valid)  # nats, tokens, wrong tokens
        metrics = evaluate(step, state, valid)
        exact = found[:, 2] == 0
        metrics["exact_match"] = float(exact.mean())
        loss = sums_interval(lambda sums: sums[..., 0] / sums[..., 1], found)
        intervals = {
            "loss": loss,
            "perplexity": tuple(map(math.exp, loss)),
            "exact_match": mean_interval(exact),
        }
        return Measured(metrics, intervals)


def _by_conversation(step: Step, state: TrainState, valid: Any) -> np.ndarray:
    """Of each conversation's answers, f64[n, 3]: nats, tokens, and tokens not the likeliest."""

    def run(variables: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        inputs = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids")}
        with logical.use(step.mesh, step.rules):
            logits = step.apply(variables, **inputs).logits
        targets, weights = next_token_targets(batch)
        wrong = 1 - is_top(logits, targets)
        nll, _ = nll_and_logsumexp(logits, targets)
        figures = jnp.stack([nll, jnp.ones_like(nll), wrong], -1) * weights[..., None]
        return figures, batch["segment_ids"]

    # Every process gets all rows.
    run = jax.jit(run, out_shardings=NamedSharding(step.mesh, PartitionSpec()))
    found = []
    for batch in valid:
        figures, segments = jax.device_get(run(state.variables, step.place(batch)))
        for row, numbers in zip(figures, segments, strict=True):
            sums = np.zeros((numbers.max() + 1, 3))
            np.add.at(sums, numbers, row)
            found.append(sums[1:])
    return np.concatenate(found)


def _last_answer(messages: Any) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")
