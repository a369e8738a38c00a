"""Who is there, before JAX's own start: that one ends the process where somebody is missing.

Process 0 listens on the coordinator's port until every other process has said its number, then
lets all of them go on and leaves the port to JAX. One line of JSON each way.
"""

import contextlib
import json
import socket
import time

from fmjax.core.errors import ConfigError

_PATIENCE = 5.0  # seconds for one line, so that a stranger on the port does not hold up the others


def roll_call(coordinator: str, count: int, index: int, timeout: float) -> None:
    """Returns in every process once all of them have come.

    Args:
      coordinator: HOST:PORT.
      count: of processes.
      index: of this process; 0 listens.
      timeout: seconds.

    Raises:
      ConfigError: the port is taken, the coordinator was not reached, processes are missing, or
        two of them do not agree; says which.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    if index == 0:
        _listen(coordinator, int(port), count, deadline, timeout)
    else:
        _answer((host.strip("[]"), int(port)), coordinator, count, index, deadline, timeout)


def _listen(coordinator: str, port: int, count: int, deadline: float, timeout: float) -> None:
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as open_:
        server = open_.enter_context(_server(coordinator, port, count))
        try:
            while len(present) < count - 1:
                if time.monotonic() >= deadline:
                    raise ConfigError(_missing(coordinator, count, present, timeout))
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    caller, address = server.accept()
                    open_.enter_context(caller)
                    said = _read(caller, max(min(_PATIENCE, deadline - time.monotonic()), 0.01))
                except OSError:
                    continue
                if not isinstance(said, dict) or not isinstance(said.get("index"), int):
                    caller.close()  # a stranger
                    continue
                if _has_left(present.get(said["index"])):
                    del present[said["index"]]  # it was started anew
                if problem := _problem(said, count, present, address[0]):
                    _say(caller, {"error": problem})
                    raise ConfigError(problem)
                present[said["index"]] = caller
        except ConfigError as e:
            for caller in present.values():
                _say(caller, {"error": str(e)})
            raise
        server.close()  # the port is JAX's from now on
        for caller in present.values():
            _say(caller, {"go": True})


def _has_left(caller: socket.socket | None) -> bool:
    if caller is None:
        return False
    caller.setblocking(False)
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _missing(coordinator: str, count: int, present: dict, timeout: float) -> str:
    missing = sorted(set(range(1, count)) - set(present))
    names = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
    return (
        f"of {count} processes {len(missing)} did not come to {coordinator} in {timeout:.0f} s: "
        f"{names}; see that each runs, with its own --process"
    )


def _server(coordinator: str, port: int, backlog: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=both)
    except OSError as e:
        raise ConfigError(
            f"--coordinator {coordinator}: process 0 cannot listen on port {port} ({e.strerror}); "
            "choose a free one"
        ) from e


def _problem(said: dict, count: int, present: dict, address: str) -> str | None:
    index = said["index"]
    if said.get("count") != count:
        return (
            f"process {index} ({address}) was started with --processes {said.get('count')}, "
            f"process 0 with --processes {count}; give all the same"
        )
    if index in present or not 0 < index < count:
        return f"two processes were started with --process {index}; give each its own"
    return None


def _answer(
    where: tuple[str, int],
    coordinator: str,
    count: int,
    index: int,
    deadline: float,
    timeout: float,
) -> None:
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(where, timeout=min(left, _PATIENCE)) as caller:
                _say(caller, {"index": index, "count": count})
                said = _read(caller, max(deadline - time.monotonic(), 0.01))
        except OSError as e:
            reason = e.strerror or str(e)
            said = None
        if isinstance(said, dict) and "error" in said:
            raise ConfigError(str(said["error"]))
        if isinstance(said, dict) and said.get("go"):
            return
        time.sleep(min(0.3, max(left, 0)))
    raise ConfigError(
        f"process {index} did not reach the coordinator {coordinator} in {timeout:.0f} s ({reason})"
        "; see that process 0 runs on that host and that no firewall closes the port"
    )


def _say(caller: socket.socket, value: dict) -> None:
    try:
        caller.settimeout(_PATIENCE)
        caller.sendall(json.dumps(value).encode() + b"\n")
    except OSError:
        pass  # It has gone; what it missed comes out when it is next needed.


def _read(caller: socket.socket, patience: float) -> dict | None:
    """One line; None where the other side hangs up or speaks another language."""
    caller.settimeout(patience)
    line = b""
    while not line.endswith(b"\n") and len(line) < 10_000:
        part = caller.recv(1000)
        if not part:
            return None
        line += part
    try:
        return json.loads(line)
    except ValueError:
        return None
