"""What each stage does, as the command that does it: now, and again larger."""

import dataclasses
from pathlib import Path

from fmjax.cli.evaluate import Evaluate
from fmjax.cli.generate import Generate
from fmjax.cli.merge import Merge
from fmjax.cli.tokenizer import TrainTokenizer
from fmjax.quickstart.settings import Quickstart
from fmjax.recipes import Adaptation, Cadence, Data, Finetune, Optimization, Pretrain

# The smallest LLaMA-style size; its shape is overridden.
_BASE = "tinyllama-1.1b"
HEAD = 32  # width of an attention head


@dataclasses.dataclass(frozen=True)
class Domain:
    """A kind of text.

    Attributes:
      title: for people.
      train, held_out: names for `--data` and `--eval-data`.
      prompts: beginnings to continue.
    """

    title: str
    train: str
    held_out: str
    prompts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of every stage, as the sub-commands of `fmjax` take them."""

    tokenizer: TrainTokenizer
    pretrain: Pretrain
    adapt: Finetune
    evaluate: Evaluate
    generate: Generate
    merge: Merge

    def commands(self) -> dict[str, object]:
        """Sub-command → its options, in order."""
        return {
            "tokenizer": self.tokenizer,
            "train": self.pretrain,
            "finetune": self.adapt,
            "eval": self.evaluate,
            "generate": self.generate,
            "merge": self.merge,
        }


def domains(settings: Quickstart) -> tuple[Domain, Domain]:
    """The text to pretrain on and the one to adapt to."""
    bible = ("In the beginning", "And the LORD said unto")
    reviews = ("This movie is", "The acting")
    if not settings.tiny:
        return (
            Domain("King James Bible", "kjv", "kjv", bible),
            Domain("movie reviews", "movie_reviews", "movie_reviews", reviews),
        )
    text = settings.out / "text"

    def files(name: str) -> tuple[str, str]:
        return str(text / f"{name}.jsonl"), str(text / f"{name}-held-out.jsonl")

    return (
        Domain("King James Bible", *files("kjv"), bible),
        Domain("movie reviews", *files("movie_reviews"), reviews),
    )


def plan(settings: Quickstart) -> Plan:
    """What the quickstart does."""
    return _plan(
        settings,
        settings.out,
        rows_evaluated=8,
        checkpoint_every=max(settings.steps // 3, 1),
    )


def larger(settings: Quickstart) -> Plan:
    """The same stages larger: eight times the parameters, eight times the text seen.

    Minutes on an accelerator, hours on a CPU. Much more would only learn the shipped text by heart.
    """
    scaled = dataclasses.replace(
        settings,
        vocab_size=settings.vocab_size if settings.tiny else 4 * settings.vocab_size,
        hidden_size=2 * settings.hidden_size,
        layers=2 * settings.layers,
        sequence_length=2 * settings.sequence_length,
        batch_size=2 * settings.batch_size,
        steps=2 * settings.steps,
        learning_rate=1e-3,
        adapt_learning_rate=2e-3,
    )
    return _plan(scaled, settings.out / "larger", rows_evaluated=20, checkpoint_every=500)


def _plan(s: Quickstart, out: Path, rows_evaluated: int, checkpoint_every: int) -> Plan:
    first, second = domains(s)
    model, adapter = out / "pretrain" / "model", out / "adapt" / "adapter"

    def data(domain: Domain) -> Data:
        return Data(
            data=(domain.train,),
            eval_data=() if domain.held_out == domain.train else (domain.held_out,),
            batch_size=s.batch_size,
            sequence_length=s.sequence_length,
        )

    def cadence(steps: int) -> Cadence:
        return Cadence(
            eval_every=-(-steps // 6),
            eval_batches=rows_evaluated,
            checkpoint_every=checkpoint_every,
            log_every=max(min(steps // 40, 10), 1),
        )

    return Plan(
        tokenizer=TrainTokenizer(
            data=(first.train, second.train), out=out / "tokenizer", vocab_size=s.vocab_size
        ),
        pretrain=Pretrain(
            model=_BASE,
            out=out / "pretrain",
            data=data(first),
            tokenizer=str(out / "tokenizer"),
            override=(
                f"hidden_size={s.hidden_size}",
                # Three matrices of 8/3 the width cost what two of four times the width do.
                f"intermediate_size={round(s.hidden_size * 8 / 3 / 32) * 32}",
                f"num_hidden_layers={s.layers}",
                f"num_attention_heads={s.hidden_size // HEAD}",
                f"num_key_value_heads={s.hidden_size // HEAD}",
                "tie_word_embeddings=true",
            ),
            optimization=Optimization(
                steps=s.steps,
                learning_rate=s.learning_rate,
                schedule="linear",
                warmup=max(s.steps // 15, 1),
            ),
            cadence=cadence(s.steps),
        ),
        adapt=Finetune(
            model=model,
            out=out / "adapt",
            data=data(second),
            adaptation=Adaptation(method="lora", rank=s.rank, alpha=2.0 * s.rank),
            optimization=Optimization(
                steps=s.adapt_steps,
                learning_rate=s.adapt_learning_rate,
                schedule="linear",
                warmup=max(s.adapt_steps // 15, 1),
            ),
            cadence=cadence(s.adapt_steps),
        ),
        evaluate=Evaluate(
            model=model,
            data=(first.held_out, second.held_out),
            adapter=adapter,
            batch_size=s.batch_size,
            sequence_length=s.sequence_length,
        ),
        generate=Generate(
            model=model,
            prompt=(second.prompts[0],),
            adapter=adapter,
            max_new_tokens=64,
            temperature=0.8,
            top_p=0.95,
        ),
        merge=Merge(model=model, adapter=adapter, out=out / "merged"),
    )
