"""A short run with early stopping in a process of its own, to be killed.

early_run.py OUT_DIR [SIGNAL BATCH]: with SIGNAL and BATCH the process signals itself when it asks
for that batch.
"""

import json
import sys

import jax
import numpy as np
import toy_lm
from resumable_run import PacedBatches

from fmjax.core import tree
from fmjax.objectives import CausalLM
from fmjax.train import EarlyStopping, JsonlLogger, adamw, fit, make_step
from fmjax.train.checkpoint import Checkpointer

# By evaluation; the best is the third, and patience runs out at the seventh.
SCORES = (0.2, 0.3, 0.7, float("nan"), 0.7, 0.69, 0.1, 0.9)
RULE = EarlyStopping("score", "max", patience=4)
EVERY = 2


def evaluate(state):
    return {"score": SCORES[int(state.step) // EVERY - 1], "other": 1.0}


def digest(state):
    leaves = tree.flatten(state.variables).values()
    return float(sum(np.abs(np.asarray(x, np.float64)).sum() for x in leaves))


def run(out_dir, batches, steps=16, rule=RULE, evaluate=evaluate):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    saver = Checkpointer(f"{out_dir}/checkpoints", keep=1, best=rule.best)
    try:
        return fit(
            step, state, batches, steps=steps, evaluate=evaluate, eval_every=EVERY, save_every=3,
            stop_early=rule, checkpointer=saver, log_every=1, progress=False,
            loggers=[JsonlLogger(f"{out_dir}/metrics.jsonl")],
        )  # fmt: skip
    finally:
        saver.close()


def main(out_dir, *signal):
    outcome = run(out_dir, PacedBatches(0.0, *map(int, signal)))
    print(json.dumps([outcome.ended, outcome.step, outcome.best_step, outcome.best_metrics,
                      digest(outcome.best()), digest(outcome.state)]))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
