"""A short training run in a process of its own, to be killed.

resumable_run.py OUT_DIR STEPS PACE [SIGNAL BATCH]: each batch takes PACE seconds, so that a signal
from outside meets the run under way. With SIGNAL and BATCH the process signals itself, so that the
step is known.
"""

import os
import sys
import time

import jax
import toy_lm

from fmjax.objectives import CausalLM
from fmjax.train import adamw, fit, make_step
from fmjax.train.loggers import JsonlLogger


class PacedBatches(toy_lm.Batches):
    def __init__(self, pace, signal=0, at=-1):
        super().__init__()
        self.pace, self.signal, self.at = pace, signal, at

    def __next__(self):
        time.sleep(self.pace)
        print("batch", self.k, flush=True)
        if self.k == self.at:
            os.kill(os.getpid(), self.signal)
        return super().__next__()


def main(out_dir, steps, pace, *signal):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2), accumulate=2)
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    outcome = fit(
        step,
        state,
        PacedBatches(float(pace), *map(int, signal)),
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
