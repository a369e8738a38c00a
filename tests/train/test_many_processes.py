"""Runs on several processes with four virtual devices or two each, against one process with eight.

A tiny LLaMA on two sources, weighted, shuffled and packed, its parameters split over all devices.
"""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import many_processes
import numpy as np
import pytest
from quick import environ

pytestmark = pytest.mark.slow

SCRIPT = Path(many_processes.__file__)
STEPS = 9
MESH = {"data": 1, "fsdp": 8}
MEASURED = {"tokens_per_second", "mfu", "goodput"}


def launch(count, out, **settings):
    """`count` processes with 8 / count devices each."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        coordinator = f"localhost:{s.getsockname()[1]}"
    settings = {"steps": STEPS, "mesh": MESH, "processes": count, "devices": 8 // count} | settings
    return [
        subprocess.Popen(
            [
                sys.executable,
                str(SCRIPT),
                json.dumps({"out": str(out), "process": i, "coordinator": coordinator} | settings),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The script says how many devices a process has.
            env=environ(),
        )
        for i in range(count)
    ]


def end(processes):
    for p in processes:
        p.kill()
        p.wait()
        p.stdout.close()
        p.stderr.close()


def outputs(processes):
    """(stdout, stderr) of each, once all have ended, as they should have."""
    try:
        found = [p.communicate(timeout=240) for p in processes]
    finally:
        end(processes)
    said = "\n".join(f"--- process {i}\n{out}{err}" for i, (out, err) in enumerate(found))
    assert [p.returncode for p in processes] == [0] * len(processes), said
    return found


def log(out):
    return [
        {name: value for name, value in line.items() if name not in MEASURED}
        for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        if "loss" in line  # not of how the hosts compare
    ]


def alike(a, b, rtol=1e-6):
    """The order of sums over processes and over threads may differ in the last bit."""
    assert [line.keys() for line in a] == [line.keys() for line in b]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(list(x.values()), list(y.values()), rtol=rtol, err_msg=str(x))


def at_batch(process, number):
    """Reads what the process says until it asks for this batch."""
    for line in process.stdout:
        if line.strip() == f"batch {number}":
            return
    raise AssertionError(process.stderr.read())


def alone(directory, **settings):
    """The run on one process: this one, which has eight devices."""
    settings = {"out": str(directory), "steps": STEPS, "mesh": MESH, "processes": 1} | settings
    settings["process"] = 0
    many_processes.main(settings)
    return log(directory)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return alone(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An unbroken run of two processes."""
    out = tmp_path_factory.mktemp("pair")
    ends = outputs(launch(2, out))
    assert all(f"finished {STEPS}" in stdout for stdout, _ in ends)
    return out


def test_two_processes_compute_what_one_computes(one, pair):
    alike(log(pair), one)


def test_a_sequence_split_over_two_processes(tmp_path, one):
    """Each reads whole rows, of which its devices hold a half; keys go round through both."""
    outputs(launch(2, tmp_path, mesh={"data": 1, "context": 8}))
    alike(log(tmp_path), one, rtol=1e-5)


def test_a_checkpoint_has_the_files_of_both(pair):
    state = pair / "checkpoints" / str(STEPS) / "state"
    assert (state / "ocdbt.process_0").exists() and (state / "ocdbt.process_1").exists()


def kill(out, victim, **settings):
    """Both end where one is killed, and start again together."""
    processes = launch(2, out, pace=0.05, **settings)
    at_batch(processes[victim], 5)
    processes[victim].kill()
    try:
        # The other finds out by itself, in its next collective.
        processes[1 - victim].wait(timeout=150)
    finally:
        end(processes)
    assert processes[1 - victim].returncode != 0
    ends = outputs(launch(2, out, **settings))
    # Progress is written by one.
    assert ["resuming after step" in stderr for _, stderr in ends] == [True, False]


def test_the_first_killed(tmp_path, pair):
    kill(tmp_path, 0)
    assert log(tmp_path) == log(pair)


def test_one_asked_to_stop(tmp_path, pair):
    processes = launch(2, tmp_path, pace=0.3)
    at_batch(processes[1], 4)
    processes[1].send_signal(signal.SIGTERM)
    ends = outputs(processes)
    stopped = {stdout.split()[-1] for stdout, _ in ends}
    assert len(stopped) == 1 and all("stopped" in stdout for stdout, _ in ends)
    step = int(stopped.pop())
    assert 4 < step < STEPS and len(log(tmp_path)) == step
    assert (tmp_path / "checkpoints" / str(step) / "run" / "run.json").exists()
    outputs(launch(2, tmp_path))
    assert log(tmp_path) == log(pair)


def test_one_that_is_slow_and_then_hangs_is_named(tmp_path):
    processes = launch(2, tmp_path, pace=0.5, slow=1, hang=2)
    try:
        at_batch(processes[1], 5)
        processes[1].send_signal(signal.SIGSTOP)
        said = []
        for line in processes[0].stderr:
            said.append(line)
            if "fmjax/train/run.py" in line:  # where the one stands that waits, in `fit`
                break
        processes[1].send_signal(signal.SIGCONT)
        stdout, stderr = outputs(processes)[0]
    finally:
        processes[1].send_signal(signal.SIGCONT)
        end(processes)
    said = "".join(said)
    assert "(process 0 of 2): step" in said and "has taken" in said
    assert "in fit\n" in said and "fmjax/train/run.py" in said
    assert "straggler: host" in said and "(process 1) waits for its input" in said
    assert "is over, after" in stderr and f"finished {STEPS}" in stdout
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "slowest_input_seconds" in line] == [4, 8]


def looks(count, *looks, mesh=MESH):
    """What `count` processes restore and read next: a list of dicts for each (out, streaming)."""
    directories = [out / f"{count}{'-'.join(map(str, mesh.values()))}" for out, _ in looks]
    for directory in directories:
        directory.mkdir()
    asked = [[str(o), s, str(d)] for (o, s), d in zip(looks, directories, strict=True)]
    if count == 1:
        settings = {"mesh": mesh, "processes": 1, "process": 0, "looks": asked}
        many_processes.main(settings)
    else:
        outputs(launch(count, "", mesh=mesh, looks=asked))
    return [[dict(np.load(d / f"look_{i}.npz")) for i in range(count)] for d in directories]


def same_place(several, one):
    """All parameters bit for bit, and the rows of each batch."""
    for name, value in one.items():
        if name.startswith("batch"):
            value_there = np.concatenate([part[name] for part in several])
            np.testing.assert_array_equal(value_there, value, err_msg=name)
        else:
            for part in several:
                np.testing.assert_array_equal(part[name], value, err_msg=name)


def test_checkpoints_of_two_restore_on_one_and_on_four(tmp_path, pair):
    """Also that of a stream, after its second process was killed."""
    reference, stream = tmp_path / "one", tmp_path / "two"
    unbroken = alone(reference, streaming=True)
    kill(stream, 1, streaming=True)
    alike(log(stream), unbroken)
    (one,), (own,), (before,) = looks(1, (pair, False), (stream, True), (reference, True))
    assert sum(name.startswith("batch") for name in one) == 12 and len(one) > 40
    four = looks(4, (pair, False), (stream, True))
    same_place(four[0], one)
    same_place(four[1], own)
    same_place(looks(1, (pair, False), mesh={"data": 2, "fsdp": 2, "tensor": 2})[0], one)
    for name, value in own.items():
        if name.startswith("batch"):
            np.testing.assert_array_equal(value, before[name])
