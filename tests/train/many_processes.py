"""A training run in one of several processes.

many_processes.py SETTINGS: JSON with `out`, `process`, `processes`, `coordinator`, `devices` (of
this process), `steps`, `mesh`. Optional: `pace`, seconds before each batch, so that a signal meets
the run under way; `slow`, the process that the pace is for; `hang`, seconds; `streaming`; `signal`
and `at`, the process signals itself at a batch; `looks`, [[out, streaming, directory], …], no
training: what such a restored run holds and reads next goes to DIRECTORY/look_PROCESS.npz.
"""

import json
import os
import sys
import time

import jax
import numpy as np

from fmjax.parallel import make_mesh, start

VOCABULARY, LENGTH, ROWS = 258, 24, 8
TINY = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


class Bytes:
    """One token a byte."""

    vocab_size, bos_token_id, eos_token_id, pad_token_id = VOCABULARY, 256, 257, 257

    def encode(self, text, add_special_tokens=False):
        return list(text.encode())


def sources():
    """Two of different sizes, with documents of very different lengths."""
    random = np.random.RandomState(0)
    words = ["".join(map(chr, random.randint(97, 123, 1 + i % 7))) for i in range(50)]

    def text(n):
        return " ".join(words[i] for i in random.randint(0, 50, n))

    return [[text(1 + i * i % 23) for i in range(40)], [text(3 + i % 5) for i in range(17)]]


class Paced:
    """Says which batch comes, and takes its time."""

    def __init__(self, batches, pace, signal, at):
        self.batches, self.pace, self.signal, self.at, self.k = batches, pace, signal, at, 0
        self.get_state, self.join_states = batches.get_state, batches.join_states

    def __next__(self):
        time.sleep(self.pace)
        print("batch", self.k, flush=True)
        if self.k == self.at:
            os.kill(os.getpid(), self.signal)
        self.k += 1
        return next(self.batches)

    def set_state(self, state):
        self.batches.set_state(state)


def parts(mesh, streaming=False):
    """(step, state, batches)"""
    import fmjax
    from fmjax.data import text_batches
    from fmjax.objectives import CausalLM
    from fmjax.train import adamw, make_step

    model = fmjax.build(TINY)
    mesh = make_mesh(**mesh)
    params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
    step = make_step(model, CausalLM(), adamw(1e-2), mesh=mesh)
    state = step.init({"params": params}, jax.random.key(1))
    batches = text_batches(
        sources(), Bytes(), batch_size=ROWS, sequence_length=LENGTH, weights=[2, 1], seed=3,
        streaming=streaming,
    )  # fmt: skip
    return step, state, batches


def look(step, state, batches, directory, steps=4):
    """{name: array}: parameters and moments after the newest checkpoint, and the next batches."""
    from jax.experimental import multihost_utils

    from fmjax.train import Checkpointer
    from fmjax.train.outcome import restore

    checkpointer = Checkpointer(f"{directory}/checkpoints")
    state = restore(step, state, checkpointer, data=batches, release=True)
    checkpointer.close()
    leaves = jax.tree_util.tree_leaves_with_path((state.variables, state.opt_state))
    found = {
        jax.tree_util.keystr(path): np.asarray(multihost_utils.process_allgather(x, tiled=True))
        for path, x in leaves
    }
    for k in range(steps):
        batch = next(batches)
        for name in batch:
            found[f"batch {k} {name}"] = batch[name]
    return found


def main(settings):
    if settings["processes"] > 1:
        start(settings["coordinator"], settings["processes"], settings["process"], timeout=120)
    from fmjax.train import fit
    from fmjax.train.loggers import JsonlLogger

    if "looks" in settings:
        for out, streaming, directory in settings["looks"]:
            found = look(*parts(settings["mesh"], streaming), out)
            np.savez(f"{directory}/look_{settings['process']}.npz", **found)
        return
    step, state, batches = parts(settings["mesh"], settings.get("streaming", False))
    out = settings["out"]
    slow = settings.get("slow", settings["process"]) == settings["process"]
    outcome = fit(
        step,
        state,
        Paced(
            batches,
            settings.get("pace", 0) * slow,
            settings.get("signal", 0),
            settings.get("at", -1),
        ),
        steps=settings["steps"],
        out_dir=out,
        save_every=3,
        log_every=1,
        hang_seconds=settings.get("hang", 60.0),
        compare_hosts_every=4,
        loggers=[JsonlLogger(f"{out}/metrics.jsonl")],
    )
    print("stopped" if outcome.stopped else "finished", outcome.step, flush=True)


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", chosen["devices"])
    main(chosen)
