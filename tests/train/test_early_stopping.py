"""The best state is kept, and a run that is broken off stops where an unbroken one does."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import early_run
import jax
import numpy as np
import pytest
import toy_lm
from quick import environ

from fmjax.core.errors import CheckpointError, ConfigError, DataError
from fmjax.objectives import CausalLM
from fmjax.train import EarlyStopping, adamw, fit, make_step
from fmjax.train.checkpoint import Checkpointer
from fmjax.train.early_stopping import Watch

SCRIPT = Path(__file__).with_name("early_run.py")
nan = math.nan


class Crash(Exception):
    pass


class Crashing(toy_lm.Batches):
    """Batches that break a run off without a last checkpoint."""

    def __init__(self, at=-1):
        super().__init__()
        self.at = at

    def __next__(self):
        if self.k == self.at:
            raise Crash
        return super().__next__()


def lines(out_dir):
    return (Path(out_dir) / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("unbroken")
    return early_run.run(out_dir, toy_lm.Batches()), lines(out_dir)


def test_stops_and_keeps_the_best(unbroken):
    outcome, log = unbroken
    assert (outcome.ended, outcome.step, outcome.stopped) == ("patience", 14, False)
    assert outcome.best_step == 6 and outcome.best_metrics == {"score": 0.7, "other": 1.0}
    assert outcome.metrics["eval_score"] == 0.1
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
    state, batches = step.init({"params": toy_lm.params()}, jax.random.key(0)), toy_lm.Batches()
    for _ in range(6):
        state, _ = step(state, next(batches))
    best = outcome.best()
    jax.tree.map(np.testing.assert_array_equal, best.variables, state.variables)
    jax.tree.map(np.testing.assert_array_equal, best.opt_state, state.opt_state)
    assert int(best.step) == 6 and int(outcome.state.step) == 14
    evaluated = [json.loads(x)["step"] for x in log.splitlines() if "eval_score" in x]
    assert evaluated == [2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("at", [3, 6, 7, 11, 13])
def test_broken_off_runs_stop_at_the_same_step(tmp_path, unbroken, at):
    with pytest.raises(Crash):
        early_run.run(tmp_path, Crashing(at))
    outcome = early_run.run(tmp_path, Crashing())
    expected, log = unbroken
    for name in ("ended", "step", "best_step", "best_metrics"):
        assert getattr(outcome, name) == getattr(expected, name), name
    for mine, other in ((outcome.best(), expected.best()), (outcome.state, expected.state)):
        jax.tree.map(np.testing.assert_array_equal, mine.variables, other.variables)
    measured = {"tokens_per_second", "mfu", "goodput"}
    mine, other = (
        [{k: v for k, v in json.loads(x).items() if k not in measured} for x in text.splitlines()]
        for text in (lines(tmp_path), log)
    )
    assert mine == other


@pytest.mark.parametrize(("number", "batch"), [(signal.SIGKILL, 12), (signal.SIGTERM, 5)])
@pytest.mark.slow
def test_killed_and_terminated(tmp_path, unbroken, number, batch):
    def start(*own):
        command = [sys.executable, str(SCRIPT), str(tmp_path), *map(str, own)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ(8))

    first = start(int(number), batch)
    assert first.returncode == (-number if number == signal.SIGKILL else 0), first.stderr
    if number == signal.SIGTERM:
        # Batch 5 makes step 6, whose evaluation, the best, is put off until the run goes on.
        assert Checkpointer(tmp_path / "checkpoints").metrics(6) is None
    done = start()
    assert done.returncode == 0, done.stderr
    expected, _ = unbroken
    ended, step, best_step, best_metrics, best, last = json.loads(done.stdout.splitlines()[-1])
    assert (ended, step, best_step) == ("patience", 14, 6)
    assert best_metrics == expected.best_metrics
    assert best == early_run.digest(expected.best())
    assert last == early_run.digest(expected.state)


def test_a_run_that_is_over_stays_so_unless_patience_grows(tmp_path, unbroken):
    early_run.run(tmp_path, toy_lm.Batches())
    before = lines(tmp_path)
    again = early_run.run(tmp_path, toy_lm.Batches())
    assert (again.ended, again.step, again.best_step) == ("patience", 14, 6)
    assert again.metrics["eval_score"] == 0.1 and lines(tmp_path) == before
    longer = early_run.run(tmp_path, toy_lm.Batches(), rule=EarlyStopping("score", "max", 9))
    assert (longer.ended, longer.step, longer.best_step) == ("steps", 16, 8 * 2)
    assert longer.best() is longer.state
    with pytest.raises(CheckpointError, match=r"best state is by 'score' \(max\)"):
        early_run.run(tmp_path, toy_lm.Batches(), rule=EarlyStopping("other", "min"))


def test_the_other_ways_to_end(tmp_path):
    few = early_run.run(tmp_path / "data", Batches(5), rule=EarlyStopping("score", "max", None))
    # After the last batch there is an evaluation in any case, here the third score's.
    assert (few.ended, few.step, few.best_step) == ("data", 5, 4)
    nothing = early_run.run(
        tmp_path / "nan", toy_lm.Batches(), steps=4, evaluate=lambda state: {"score": nan}
    )
    assert (nothing.ended, nothing.best_step) == ("steps", None)
    with pytest.raises(DataError, match="there is no best state"):
        nothing.best()


class Batches(toy_lm.Batches):
    def __init__(self, count):
        super().__init__()
        self.count = count

    def __next__(self):
        if self.k == self.count:
            raise StopIteration
        return super().__next__()


def test_by_the_objectives_mean_and_into_little_memory(tmp_path):
    step = make_step(toy_lm.apply, CausalLM(), adamw(0.5))
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    outcome = fit(
        step, state, toy_lm.Batches(), steps=20, out_dir=tmp_path, eval_every=1, loggers=[],
        eval_batches=lambda: [next(toy_lm.Batches(seed=9))], progress=False,
        stop_early=EarlyStopping(patience=2),
    )  # fmt: skip
    assert outcome.ended == "patience" and outcome.step == outcome.best_step + 2
    best = outcome.best(release=True)
    assert all(x.is_deleted() for x in jax.tree.leaves(outcome.state.variables))
    sums = step.evaluate(best, next(toy_lm.Batches(seed=9)))
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(
        outcome.best_metrics["loss"], rel=1e-6
    )


@pytest.mark.parametrize(
    ("rule", "scores", "best", "over"),
    [
        (EarlyStopping("m", "min", 2), (3, 2, 2.5, 2), 2, 4),
        (EarlyStopping("m", "max", 2), (1, 2, 1, 2), 2, 4),
        (EarlyStopping("m", "max", 2), (nan, nan, 5), None, 2),
        (EarlyStopping("m", "max", 2), (nan, 1, nan, 2, math.inf), 4, None),
        (EarlyStopping("m", "min", 1), (-math.inf,), None, 1),
        # Gains of at most min_delta are kept, but do not extend the run.
        (EarlyStopping("m", "max", 2, 0.5), (1, 1.25, 1.5), 3, 3),
        # Small gains add up.
        (EarlyStopping("m", "max", 2, 0.5), (1, 1.25, 1.75, 2), 4, None),
        (EarlyStopping("m", "max", None), (3, 2, 1, 0), 1, None),
    ],
)
def test_what_is_best_and_when_it_is_over(rule, scores, best, over):
    watch, ended = Watch(rule), None
    for number, score in enumerate(scores, 1):
        watch.observe(number, {"m": score})
        # What goes through a checkpoint is what stays.
        watch = Watch.resume(rule, json.loads(json.dumps(watch.notes())))
        if watch.over:
            ended = number
            break
    assert (watch.step, ended) == (best, over)


def test_checkpoints_keep_the_best_by_the_same_measure(tmp_path):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    saver = Checkpointer(tmp_path, keep=1, best=("f1", "max"))
    metrics = ({"f1": nan}, {"f1": 0.5}, None, {"f1": 0.5}, {"f1": math.inf}, {"loss": 1.0})
    for number, found in enumerate(metrics, 1):
        saver.save(number, state, metrics=found, notes={"n": number})
    assert saver.steps() == [2, 6] and saver.best_step() == 2
    assert saver.notes(2) == {"n": 2}
    saver.save(7, state)
    assert saver.steps() == [2, 7] and saver.notes(7) == {}
    with pytest.raises(CheckpointError, match="no checkpoint can be read; .*3 is damaged"):
        saver.restore(step.abstract_state(state.variables), step=3)
    saver.close()


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"mode": "higher"}, "mode 'higher' is neither"),
        ({"patience": 0}, "patience 0 must be at least 1"),
        ({"min_delta": -1.0}, "min_delta -1.0 must not"),
    ],
)
def test_bad_rules(kwargs, text):
    with pytest.raises(ConfigError, match=text):
        EarlyStopping(**kwargs)


def test_argument_errors(tmp_path):
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))

    def go(**kwargs):
        state = step.init({"params": toy_lm.params()}, jax.random.key(0))
        fit(step, state, toy_lm.Batches(), steps=3, progress=False, loggers=[], **kwargs)

    f1 = {"stop_early": EarlyStopping("f1", "max"), "evaluate": lambda state: {"a": 1, "b": 2}}
    with pytest.raises(ConfigError, match="watches 'f1', but the evaluation gives a, b"):
        go(**f1, eval_every=1, out_dir=tmp_path / "a")
    with pytest.raises(ConfigError, match="needs evaluations"):
        go(**f1, out_dir=tmp_path / "b")
    with pytest.raises(ConfigError, match="pass out_dir"):
        go(**f1, eval_every=1)
    with pytest.raises(ConfigError, match="not both"):
        go(evaluate=f1["evaluate"], eval_batches=list)
    saver = Checkpointer(tmp_path / "c", best=("eval_loss", "min"))
    with pytest.raises(ConfigError, match=r"early stopping needs \('eval_f1', 'max'\)"):
        go(**f1, eval_every=1, checkpointer=saver)
    saver.close()
