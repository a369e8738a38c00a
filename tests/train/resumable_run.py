"""A short training run in a process of its own, to be killed: resumable_run.py OUT_DIR STEPS PACE.

PACE is the seconds that each batch takes, so that a signal meets the run under way.
"""

import sys
import time

import jax
import toy_lm

from fmjax.objectives import CausalLM
from fmjax.train import adamw, fit, make_step
from fmjax.train.loggers import JsonlLogger


class PacedBatches(toy_lm.Batches):
    def __init__(self, pace):
        super().__init__()
        self.pace = pace

    def __next__(self):
        time.sleep(self.pace)
        print("batch", self.k, flush=True)
        return super().__next__()


def main(out_dir, steps, pace):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2), accumulate=2)
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    outcome = fit(
        step,
        state,
        PacedBatches(float(pace)),
        steps=int(steps),
        out_dir=out_dir,
        save_every=3,
        eval_batches=lambda: [next(toy_lm.Batches(seed=9))],
        eval_every=5,
        log_every=1,
        loggers=[JsonlLogger(f"{out_dir}/metrics.jsonl")],
    )
    print("stopped" if outcome.stopped else "finished", outcome.step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
