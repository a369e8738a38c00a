"""Runs that are broken off go on as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from quick import environ

SCRIPT = Path(__file__).with_name("resumable_run.py")
STEPS = 14
MEASURED = {"tokens_per_second", "mfu", "goodput"}


def command(out_dir, pace=0.0, steps=STEPS):
    return [sys.executable, str(SCRIPT), str(out_dir), str(steps), str(pace)]


def finish(out_dir, steps=STEPS):
    done = subprocess.run(
        command(out_dir, steps=steps), capture_output=True, text=True, env=environ()
    )
    assert done.returncode == 0, done.stderr
    return done


def log(out_dir):
    lines = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("unbroken")
    finish(out_dir)
    return log(out_dir)


def kill(out_dir, batch):
    """Kills the run from outside soon after it has asked for this batch."""
    process = subprocess.Popen(
        command(out_dir, pace=0.05),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(),
    )
    for line in process.stdout:
        if line.strip() == f"batch {batch}":
            process.kill()
            break
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


def stop(out_dir, number, batch):
    """Runs until a signal comes while it is at this batch."""
    own = [str(int(number)), str(batch)]
    done = subprocess.run(
        command(out_dir) + own, capture_output=True, text=True, timeout=120, env=environ()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# Batch 6 comes right after a save has started in the background.
@pytest.mark.parametrize("batch", [6, "any"])
@pytest.mark.slow
def test_killed(tmp_path, unbroken, batch):
    batch = random.randrange(STEPS) if batch == "any" else batch
    kill(tmp_path, batch)
    done = finish(tmp_path)
    assert f"finished {STEPS}" in done.stdout
    assert log(tmp_path) == unbroken, f"killed at batch {batch}"


@pytest.mark.slow
def test_terminated_at_a_step_with_an_evaluation(tmp_path, unbroken):
    # Batch 4 makes step 5, where an evaluation is due and no checkpoint.
    out, err = stop(tmp_path, signal.SIGTERM, 4)
    assert "stopped 5" in out and "stopped after step 5" in err
    assert (tmp_path / "checkpoints" / "5" / "run" / "run.json").exists()
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5]
    done = finish(tmp_path)
    assert "resuming after step 5" in done.stderr
    assert done.stdout.splitlines()[0] == "batch 5"
    assert log(tmp_path) == unbroken


@pytest.mark.slow
def test_interrupted_from_the_keyboard(tmp_path, unbroken):
    out, _ = stop(tmp_path, signal.SIGINT, 6)
    assert "stopped 7" in out
    finish(tmp_path)
    assert log(tmp_path) == unbroken
