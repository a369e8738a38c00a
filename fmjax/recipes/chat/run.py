"""A fine-tuning run on conversations, from files to files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from fmjax.core import tree
from fmjax.data import use_default_template
from fmjax.recipes.adaptation import Adapted, open_adapted
from fmjax.recipes.chat.dpo import Dpo
from fmjax.recipes.chat.samples import Answers
from fmjax.recipes.chat.sft import Sft
from fmjax.recipes.models import resolve_directory
from fmjax.recipes.tasks.results import print_figures, to_json, when_kept
from fmjax.recipes.tasks.run import train_to_best
from fmjax.recipes.tasks.start import check, laid_out, schedule
from fmjax.recipes.tasks.task import Measured
from fmjax.train import EarlyStopping, evaluate, make_step

TASKS = {"sft": Sft, "dpo": Dpo}
METRIC = "loss"


def finetune(settings: Any) -> Measured | None:
    """Trains, measures and exports; see `FinetuneSft` and `FinetuneDpo`.

    Returns:
      The figures on the examples to measure on; None if a signal ended the run early.
    """
    check(settings)
    start = resolve_directory(settings.model)
    tokenizer = start.tokenizer
    length = settings.examples.max_length
    limit = start.config.position_limit
    length = min(length, limit - settings.adaptation.positions) if limit else length
    notes = []
    if use_default_template(tokenizer):
        notes.append("the tokenizer has no chat template; a plain one is used and saved")
    task = TASKS[settings.task](settings, tokenizer, length)
    print(*notes, *task.notes, sep="\n")
    optimization = settings.optimization
    layout, seed = laid_out(settings, start.config), optimization.seed
    adapted = open_adapted(
        settings.adaptation, settings.model, settings.hardware, layout, seed, tokenizer=tokenizer
    )
    answers = Answers(
        task.prompts, task.wanted, tokenizer, adapted.model, settings.model, settings.shown
    )
    ready = task.ready(adapted, layout)
    steps = settings.steps(ready.per_epoch)
    rate = schedule(settings, steps)
    step = make_step(
        adapted.apply,
        ready.objective,
        adapted.optimizer(rate, b2=0.999, weight_decay=optimization.weight_decay),
        mesh=layout.mesh,
        rules=layout.rules,
        trainable=adapted.trainable,
        accumulate=optimization.accumulate,
        clip_norm=optimization.clip_norm or None,
        learning_rate=rate,
        offload=settings.hardware.offloaded,
    )
    state = step.init(adapted.variables, jax.random.key(seed + 1))
    number = tree.count(step.split(state.variables)[0])
    total = tree.count(adapted.variables["params"])
    print(f"{number:,} of {total:,} parameters trained ({number / total:.2%}), {steps:,} steps")
    before = evaluate(step, state, ready.valid)
    answers_before = answers(adapted.expanded(state.variables))
    print("before training: " + ", ".join(f"{k} {v:.4f}" for k, v in before.items()))
    outcome = train_to_best(
        settings,
        step,
        state,
        ready.batches,
        steps=steps,
        evaluate=lambda state: evaluate(step, adapted.counted(state), ready.valid),
        eval_every=settings.eval_every(ready.per_epoch),
        stop=EarlyStopping(METRIC, "min", optimization.patience or None),
        config=adapted.model.config.to_hf(),
    )
    if outcome is None:
        return None
    state = adapted.counted(outcome.state)
    measured = task.measure(step, state, ready.valid)
    samples = answers.beside(answers_before, answers(adapted.expanded(state.variables)))
    target = adapted.save(settings.out, state.variables, settings.model)
    if jax.process_index():
        return measured
    tokenizer.save(target)
    content = {
        "task": settings.task,
        "best_step": outcome.best_step,
        **to_json(measured),
        "before": to_json(Measured(before))["metrics"],
        "samples": samples,
        "settings": json.loads(json.dumps(asdict(settings), default=str)),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (settings.out / "metrics.json").write_text(text, encoding="utf-8")
    _show(settings, adapted, measured, samples, outcome, target)
    return measured


def _show(
    settings: Any,
    adapted: Adapted,
    measured: Measured,
    samples: list[dict[str, str]],
    outcome: Any,
    target: Path,
) -> None:
    for sample in samples:
        print()
        for name, text in sample.items():
            print(f"{name + ':':8} {' '.join(text.split())}")
    print()
    print_figures(f"{settings.task}, {when_kept(outcome)}", measured)
    print(f"figures: {settings.out / 'metrics.json'}, {target.name}: {target}")
    if target.name == "model":
        print(f'next: fmjax generate --model {target} --chat --prompt "…"')
    else:
        steps = adapted.next_steps(settings.model, target, settings.out, '--chat --prompt "…"')
        print("next:", "\n      ".join(steps))
