"""Instruction tuning: conversations as batches, and how well their answers are predicted."""

from typing import Any

import jax

from fmjax.data import chat_batches, chat_documents, chat_eval_batches
from fmjax.data.tasks import read_conversations
from fmjax.objectives import CausalLM
from fmjax.recipes.adaptation import Adapted
from fmjax.recipes.chat.finetune import FinetuneSft
from fmjax.recipes.chat.task import ChatTask, Ready, held_out
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

    def ready(self, adapted: Adapted, mesh: jax.sharding.Mesh) -> Ready:
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
        return Measured(evaluate(step, state, valid))


def _last_answer(messages: Any) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")
