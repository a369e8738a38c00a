"""Who belongs to a run: from arguments and from the environment, and what is at odds."""

import socket
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from fmjax.core.errors import ConfigError
from fmjax.parallel import distributed, group, roll_call, start
from fmjax.parallel.group import find_group, first_host

SRUN = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "gpu[03-05,9],other",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
TORCHRUN = {"MASTER_ADDR": "h0", "MASTER_PORT": "29400", "WORLD_SIZE": "8", "RANK": "3"}
JAX = {"JAX_COORDINATOR_ADDRESS": "h0:1234", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "1"}


def parts(found):
    return found.coordinator, found.count, found.index, found.local_devices


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (JAX, ("h0:1234", 3, 1, None)),
        # An indexed Kubernetes job numbers its pods itself.
        (
            {"JAX_COORDINATOR_ADDRESS": "h0:1", "JAX_NUM_PROCESSES": "2"}
            | {"JOB_COMPLETION_INDEX": "0"},
            ("h0:1", 2, 0, None),
        ),
        (TORCHRUN, ("h0:29400", 8, 3, None)),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}, ("h0:29400", 8, 3, (1,))),
        (
            TORCHRUN | {"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "1"},
            ("h0:29400", 8, 3, None),
        ),
        (SRUN, ("gpu03:62344", 4, 2, None)),
        # Several tasks on a node: each has an accelerator of its own.
        (
            SRUN | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "2"},
            ("gpu03:62344", 4, 2, (2,)),
        ),
        (SRUN | {"JAX_COORDINATOR_PORT": "777"}, ("gpu03:777", 4, 2, None)),
        # A launcher under SLURM goes before it; SLURM fills in what it leaves open.
        (SRUN | JAX, ("h0:1234", 3, 1, None)),
        (
            SRUN | {"JAX_COORDINATOR_ADDRESS": "h0:1", "SLURM_NTASKS": "4"},
            ("h0:1", 4, 2, None),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_found_in_the_environment(environ, expected):
    assert parts(find_group(environ=environ)) == expected
    assert find_group(processes=1, environ=environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"},  # some images set these for everyone
        {"SLURM_JOB_ID": "3", "SLURM_NTASKS": "4"},  # a batch script, not a step of srun
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"},
    ],
    ids=str,
)
def test_alone(environ):
    assert find_group(environ=environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
        {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
    ],
    ids=str,
)
def test_tpu_pods_are_left_to_jax(environ):
    assert parts(find_group(environ=environ)) == (None, None, None, None)


def test_a_tpu_vm_asks_its_metadata(monkeypatch):
    answers = {"worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3"}
    monkeypatch.setattr(group.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(group, "_metadata", lambda key: answers.get(key, ""))
    assert find_group(environ={}) is not None
    answers["worker-network-endpoints"] = "unknown:unknown:10.0.0.2"
    assert find_group(environ={}) is None
    answers["tpu-env"] = "ACCELERATOR_TYPE: 'v5e-4'\nMEGASCALE_NUM_SLICES: '2'"
    assert find_group(environ={}) is not None
    assert find_group(environ={"TPU_SKIP_MDS_QUERY": "1"}) is None


def test_arguments_go_before_the_environment():
    assert parts(find_group("h9:99", 2, 0, environ=SRUN)) == ("h9:99", 2, 0, None)
    assert parts(find_group("h9:99", environ=SRUN)) == ("h9:99", 4, 2, None)
    assert parts(find_group("[::1]:99", 2, 1, environ={})) == ("[::1]:99", 2, 1, None)


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (("h:1",), {}, r"the arguments leave open --processes N, --process I"),
        (("", 2, 0), {}, r"leave open --coordinator HOST:PORT .* to every process"),
        (("", None, 1), {}, r"leave open --coordinator HOST:PORT, --processes N"),
        (("h:1", 2, 2), {}, r"--process 2 is not one of --processes 2; .* from 0 to 1"),
        (("h:1", 2, -1), {}, r"--process -1 is not one of"),
        (("h:1", 0, 0), {}, r"--processes 0 must be at least 1"),
        (("localhost", 2, 0), {}, r"'localhost' is not HOST:PORT"),
        (("h:port", 2, 0), {}, r"'h:port' is not HOST:PORT"),
        (("h:70000", 2, 0), {}, r"'h:70000' is not HOST:PORT"),
        ((), {"JAX_COORDINATOR_ADDRESS": "h:1"}, r"JAX_PROCESS_ID leave open --processes N"),
        ((), TORCHRUN | {"RANK": "x"}, r"the variable RANK is 'x', not a number"),
        (("", None, 7), SRUN, r"--process 7 is not one of --processes 4"),
    ],
    ids=str,
)
def test_at_odds(arguments, environ, message):
    with pytest.raises(ConfigError, match=message):
        find_group(*arguments, environ=environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[07-12]", "n07"), ("n[7,9],m", "n7"), ("r-1-[2-3]-x", "r-1-2-x")],
)
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


@pytest.fixture
def coordinator():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


def call(coordinator, members, timeout=5.0):
    """Runs the roll call of (index, count) pairs, each in a thread; what each raised, or None."""
    results = [None] * len(members)

    def one(i, index, count):
        try:
            roll_call.roll_call(coordinator, count, index, timeout)
        except ConfigError as e:
            results[i] = str(e)

    threads = [threading.Thread(target=one, args=(i, *m)) for i, m in enumerate(members)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join(timeout + 10)
    return results


def test_roll_call(coordinator):
    assert call(coordinator, [(2, 3), (0, 3), (1, 3)]) == [None] * 3
    assert call(coordinator, [(0, 1)]) == [None]


def test_roll_call_says_who_is_missing(coordinator):
    first, second = call(coordinator, [(0, 4), (2, 4)], timeout=1.0)
    assert "of 4 processes 2 did not come to" in first and "in 1 s: 1, 3;" in first
    assert "in 1 s" in second


def test_roll_call_without_a_coordinator(coordinator):
    (error,) = call(coordinator, [(1, 2)], timeout=1.0)
    assert f"process 1 did not reach the coordinator {coordinator} in 1 s" in error


def test_roll_call_of_processes_that_do_not_agree(coordinator):
    errors = call(coordinator, [(0, 2), (1, 3)])
    assert all("with --processes 3, process 0 with --processes 2" in e for e in errors)
    errors = call(coordinator, [(0, 3), (1, 3), (1, 3)])
    assert all("two processes were started with --process 1" in e for e in errors)


def test_a_process_that_is_started_anew_is_no_second_one(coordinator):
    results = []
    thread = threading.Thread(target=lambda: results.append(call(coordinator, [(0, 3)])))
    thread.start()
    time.sleep(0.3)
    with socket.create_connection(("localhost", int(coordinator.split(":")[1]))) as first:
        first.sendall(b'{"index": 1, "count": 3}\n')
        time.sleep(0.1)
    assert call(coordinator, [(1, 3), (2, 3)]) == [None, None]
    thread.join()
    assert results == [[None]]


def test_roll_call_on_a_taken_port(coordinator):
    port = int(coordinator.split(":")[1])
    with socket.create_server(("", port)):
        (error,) = call(coordinator, [(0, 2)])
    assert f"process 0 cannot listen on port {port}" in error


def test_a_stranger_on_the_port(coordinator):
    """Whatever else connects is passed over."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call(coordinator, [(0, 2)])))
    thread.start()
    port = int(coordinator.split(":")[1])
    time.sleep(0.3)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert call(coordinator, [(1, 2)]) == [None]
    thread.join()
    assert results == [[None]]


def test_to_start_after_a_device_was_used_is_refused_before_anybody_is_waited_for(coordinator):
    jax.devices()
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"already used a device; call fmjax.parallel.start bef"):
        start(coordinator, 2, 0, timeout=60)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("service", "waits"), [(object(), [distributed.GRACE]), (None, [])])
def test_the_coordinator_leaves_last(service, waits, monkeypatch):
    """Else the others, which may have failed for the same reason, are killed before they say so."""
    done = []
    monkeypatch.setattr(distributed, "global_state", SimpleNamespace(service=service))
    monkeypatch.setattr(distributed.time, "sleep", done.append)
    monkeypatch.setattr(distributed.os, "_exit", lambda code: done.append(f"exit {code}"))
    distributed.leave(2)
    assert done == [*waits, "exit 2"]
