"""Training commands as several processes."""

import json
import socket
import subprocess
import sys

import pytest
from quick import environ

from fmjax.cli.main import execute

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--coordinator", "h:1"], ["leave open --processes N, --process I"]),
        (["--processes", "2", "--process", "0"], ["leave open --coordinator HOST:PORT"]),
        (
            ["--coordinator", "h:1", "--processes", "2", "--process", "2"],
            ["--process 2 is not one of --processes 2"],
        ),
        (["--coordinator", "h", "--processes", "2", "--process", "0"], ["'h' is not HOST:PORT"]),
        (["--profile", "5:2"], ["profile 5:2 holds no step"]),
    ],
    ids=str,
)
def test_flags_at_odds(fails, train_args, flags, messages, tmp_path):
    fails([*train_args, *flags], *messages)
    assert not (tmp_path / "run").exists()


def test_one_whose_reader_leaves_does_not_wait_for_the_others(monkeypatch, capfd):
    """JAX would, at the exit, while they wait for it in their next collective."""
    left = []
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("fmjax.parallel.distributed.leave", left.append)
    monkeypatch.setattr("os.dup2", lambda *_: None)

    def run():
        raise BrokenPipeError

    assert execute(run) == 0 and left == [0]


def start(arguments, count):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        coordinator = f"localhost:{s.getsockname()[1]}"
    flags = ["--coordinator", coordinator, "--processes", str(count), "--process"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fmjax", *map(str, arguments), *flags, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ(4),
        )
        for i in range(count)
    ]


def ends(processes):
    try:
        found = [p.communicate(timeout=280) for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    return [p.returncode for p in processes], found


def test_two_processes_train_one_model(train_args, tmp_path):
    codes, found = ends(start([*train_args, "--mesh", "data=2,fsdp=4", "--profile", "2"], 2))
    assert codes == [0, 0], found
    (first, _), (second, progress) = found
    assert f"model: {tmp_path / 'run' / 'model'}" in first
    assert "8 × cpu (data 2 × fsdp 4)" in first
    assert second == "" and "step 3/3" not in progress
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]
    assert steps == [1, 2, 3]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1


def test_one_that_fails_says_so_at_once(train_args, tmp_path):
    """Here: rows that do not divide by the processes, found by both."""
    arguments = ["9" if word == "8" else word for word in train_args]
    codes, found = ends(start([*arguments, "--mesh", "tensor=8,data=1"], 2))
    assert codes == [2, 2], found
    assert all("does not divide by 2 processes" in stderr for _, stderr in found)
