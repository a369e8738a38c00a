"""Where time goes, what hangs, who holds up the others."""

import io
import json
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_lm

from fmjax.core.errors import ConfigError
from fmjax.objectives import CausalLM
from fmjax.train import Profile, adamw, clock, fit, make_step, stragglers
from fmjax.train.clock import Clock
from fmjax.train.loggers import JsonlLogger
from fmjax.train.stragglers import gather, judge, probe
from fmjax.train.watchdog import Watchdog, here


@pytest.fixture
def ticking(monkeypatch):
    """A clock whose hands we move."""

    class Time:
        now, wall = 100.0, 1e9

        def move(self, seconds):
            self.now += seconds
            self.wall += seconds

    hands = Time()
    monkeypatch.setattr(clock.time, "perf_counter", lambda: hands.now)
    monkeypatch.setattr(clock.time, "time", lambda: hands.wall)
    return hands


def test_every_second_belongs_to_one_activity(ticking):
    ours = Clock()
    ticking.move(1)
    with ours.doing("input"):
        ticking.move(2)
    with ours.doing("step"):
        ticking.move(10)
        clock._on_duration("/jax/core/compile/backend_compile_duration", 4.0)
        clock._on_duration("/jax/other", 3.0)
    ticking.move(3)
    assert ours.goodput() == pytest.approx(6 / 16)
    assert ours.seconds == {"other": 4, "input": 2, "step": 6, "compile": 4}
    assert ours.summary() == (
        "goodput 37.5%: step 0:00:06, compile 0:00:04, other 0:00:04, input 0:00:02"
    )


def test_the_time_until_a_restart_is_lost(ticking):
    ours = Clock()
    with ours.doing("step"):
        ticking.move(60)
    notes = json.loads(json.dumps(ours.notes(complete=False)))
    with ours.doing("step"):
        ticking.move(20)  # of steps that are not in the checkpoint
    ticking.move(10)
    again = Clock(notes)
    assert again.goodput() == pytest.approx(60 / 90)
    assert again.seconds["restart"] == 30
    # A run that was complete has lost nothing when it gets more steps.
    assert "restart" not in Clock({**notes, "complete": True}).seconds


def test_the_usual_step(ticking):
    ours = Clock()
    assert ours.usual is None
    for step, seconds in enumerate((50, 2, 3, 30, 2), 1):  # the first one compiles
        ticking.move(seconds)
        ours.beat(step)
    assert ours.usual == 2.5
    with ours.doing("checkpoint"):
        ticking.move(100)
        assert ours.since == ticking.now - 100
    ticking.move(3)
    ours.beat(6)
    assert ours.usual == 3


def watch(sleeps, tmp_path, **options):
    """What the watchdog says while steps take this long."""
    ours = Clock()
    ours.beat(1)
    with (tmp_path / "reports").open("a") as file, Watchdog(ours, file=file, **options):
        for step, seconds in enumerate(sleeps, 2):
            time.sleep(seconds)
            ours.beat(step)
        time.sleep(0.2)
    return (tmp_path / "reports").read_text()


def test_a_step_that_hangs_is_reported_with_the_host_and_the_stacks(tmp_path):
    said = watch([0.02] * 5 + [2.5] + [0.02], tmp_path, least=0.5)
    assert f"{here()}: step 7 has taken" in said
    assert "so far (a step usually takes 0.0" in said
    assert "MainThread" in said and "test_clock.py" in said and "in watch" in said
    assert f"{here()}: step 7 is over, after " in said
    assert said.count("so far") in (2, 3)  # it doubles before it is said again


def test_steady_steps_are_not_reported(tmp_path):
    assert watch([0.2] * 4, tmp_path, least=0.1, factor=500) == ""


def test_the_first_step_and_slow_activities_have_time():
    ours = Clock()
    dog = Watchdog(ours, least=60)
    assert dog.limit() == 1800 and Watchdog(ours, least=3600).limit() == 3600
    with ours.doing("evaluation"):
        assert dog.limit() == 600
    ours._durations.extend([20.0, 22.0])
    assert dog.limit() == 105


def test_reports_where_there_is_no_file():
    file = io.StringIO()
    Watchdog(Clock(), file=file)._report("step 3", 70)
    assert "step 3 has taken 70 s so far; its threads:" in file.getvalue()


def test_stragglers():
    even = {"input": np.full(4, 0.1), "other": np.full(4, 0.01), "probe": np.full(4, 0.02)}
    assert judge(even, list("abcd"), 1.0) == []
    late = even | {"input": np.array([0.1, 0.1, 0.9, 0.1])}
    (said,) = judge(late, list("abcd"), 1.0)
    assert said == (
        "straggler: host c (process 2) waits for its input 0.9 s, the median host 0.1 s"
    )
    assert judge(late, list("abcd"), 100.0) == []  # too little to matter
    slow = even | {"probe": np.array([0.02, 0.05, 0.02, 0.02])}
    (said,) = judge(slow, list("abcd"), 100.0)
    assert "host b (process 1) needs for a small computation on its devices 0.05 s" in said


def test_after_a_restart_only_the_steps_since_then_count(ticking, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stragglers, "probe", lambda: 0.02)
    both = lambda own: ({name: np.array([x, x]) for name, x in own.items()}, ["a", "b"])  # noqa: E731
    monkeypatch.setattr(stragglers, "gather", both)
    ours = Clock()
    compare = stragglers.Stragglers(ours, every=4)
    for step in range(1001, 1005):
        with ours.doing("input"):
            ticking.move(2)
        found, _ = compare(step, 1.0)
    assert found["slowest_input_seconds"] == pytest.approx(2)


def test_gathering_from_one_process():
    table, hosts = gather({"input": 1.5, "probe": 2.0})
    assert table["input"].tolist() == [1.5] and table["probe"].tolist() == [2.0]
    assert len(hosts) == 1 and hosts[0] in here()
    assert 0 < probe(size=16, repeats=2) < 60


def test_a_device_is_judged_by_its_best_try(monkeypatch):
    # The seconds of five tries on each device: of one, the host was slow to start most.
    took = iter([4, 9, 9, 1, 9] + [2] * 5 * (len(jax.local_devices()) - 1))
    now, odd = [0.0], [False]

    def clock():
        now[0] += next(took) if odd[0] else 0
        odd[0] = not odd[0]
        return now[0]

    monkeypatch.setattr(stragglers, "time", types.SimpleNamespace(perf_counter=clock))
    assert probe(size=4, repeats=1) == (1 if len(jax.local_devices()) == 1 else 2)


def test_a_run_accounts_for_its_time(tmp_path, capsys):
    def go(steps):
        step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
        state = step.init({"params": toy_lm.params()}, jax.random.key(0))
        return fit(
            step,
            state,
            toy_lm.Batches(),
            steps=steps,
            out_dir=tmp_path,
            log_every=1,
            loggers=[JsonlLogger(tmp_path / "metrics.jsonl")],
        )

    metrics = go(3).metrics
    assert 0 < metrics["goodput"] < 1
    go(5)  # it was complete: no loss
    assert "goodput " in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["goodput"] < 1 for line in lines)
    run = json.loads((tmp_path / "checkpoints" / "5" / "run" / "run.json").read_text())
    seconds = run["notes"]["time"]["seconds"]
    assert seconds["step"] > 0 and seconds["compile"] > 0 and "restart" not in seconds


@pytest.mark.slow
def test_profiles_of_runs():
    # In a process of its own: where libtpu was loaded to compile for a TPU, the profiler crashes.
    file = Path(__file__).with_name("profiles.py")
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "2 passed" in result.stdout, result.stdout + result.stderr


def test_all_processes_wait_for_the_last_recorded_step(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    profile = Profile(tmp_path / "profile", 3, 4)
    found = []
    for number in range(2, 6):
        with profile.step(number):
            found.append(profile.ends(number))
    assert found == [False, False, True, False]
    assert not profile.stop() and not (tmp_path / "profile").exists()


@pytest.mark.parametrize("text", ["5:3", "0:2", "a", "3:", ":4", "3-4", "1:2:3"])
def test_bad_ranges(text, tmp_path):
    with pytest.raises(ConfigError, match=r"as in 10:15"):
        Profile.of(text, tmp_path)
    assert Profile.of("", tmp_path) is None
    assert Profile.of("7", tmp_path).last == 7
