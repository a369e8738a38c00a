"""Training checkpoints: one directory a step, written in the background, complete or absent.

The only module that knows Orbax. `DIR/STEP/` holds `state` (arrays), `data` (one JSON file a
process: where its iterator stands) and `run` (one JSON file: the configuration, what the arrays
are, and which base weights they belong to).
"""

import base64
import dataclasses
import json
import shutil
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from orbax.checkpoint import v1

from fmjax.core.errors import CheckpointError
from fmjax.train.fingerprint import fingerprint
from fmjax.train.state import TrainState


class Resumable(Protocol):
    """A data iterator whose position can be saved: JSON values, bytes allowed among them."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class Checkpointer:
    """Saves and restores training states below one directory.

    Args:
      directory: created if it does not exist.
      keep: newest checkpoints that stay; None keeps all.
      best: (metric, "min" | "max"): also keep the checkpoint that is best by this metric, of those
        saved with metrics.
      config: JSON-able; recorded, and compared on restoring.
      free: dotted fields of `config` that may change between runs, such as "train.steps".
      base: where the frozen weights come from; recorded next to their fingerprint.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int | None = 3,
        best: tuple[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        free: Iterable[str] = (),
        base: str | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._best = best
        self._config = json.loads(json.dumps(config or {}))
        self._free = set(free)
        self._base = base
        self._fingerprint: str | None = None
        self._pending: int | None = None
        policies = v1.training.preservation_policies
        kept = [policies.LatestN(keep)]
        if best is not None:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best[0]],
                    reverse=best[1] == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._orbax = v1.training.Checkpointer(
                self.directory,
                # Every save is asked for by the loop; Orbax need not decide again.
                save_decision_policy=v1.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            )
        except OSError as e:
            raise CheckpointError(f"cannot use {directory} for checkpoints: {_reason(e)}") from e

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending; a damaged one may be among them."""
        self.wait()
        self._orbax.reload()
        return [c.step for c in self._orbax.checkpoints]

    def metrics(self, step: int) -> dict[str, float] | None:
        """Those that were saved with this step, if any."""
        return next((c.metrics for c in self._orbax.checkpoints if c.step == step), None)

    def best_step(self) -> int | None:
        """The step that is best by the metric given at the start, of those that are kept."""
        if self._best is None:
            return None
        name, mode = self._best
        known = [c for c in self._orbax.checkpoints if c.metrics and name in c.metrics]
        order = (lambda c: c.metrics[name]) if mode == "min" else (lambda c: -c.metrics[name])
        return min(known, key=order).step if known else None

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        frozen: Any = None,
        data: Resumable | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          step: number of the checkpoint; an existing one of this number is replaced.
          state: whose `variables` are what is to be saved, usually only the trained part.
          frozen: the other part: not saved, but its fingerprint is.
          data: iterator whose position is saved.
          metrics: of an evaluation at this step, for `best`.

        Raises:
          CheckpointError: this save cannot start, or the one before it failed.
        """
        self.wait()
        run = {"config": self._config, "base": self._base_record(frozen), "arrays": _shapes(state)}
        items = {
            "state": _as_dict(state),
            "run": _Json("run.json", run, primary_only=True),
            "data": _Json(_data_name(), None if data is None else _pack(data.get_state())),
        }
        self._pending = step
        try:
            self._orbax.save_checkpointables_async(
                step, items, overwrite=True, force=True, metrics=metrics and dict(metrics)
            )
        except Exception as e:
            raise self._failed(e) from e

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          CheckpointError: the save in the background failed; earlier checkpoints are intact.
        """
        try:
            self._orbax.wait()
        except Exception as e:
            raise self._failed(e) from e
        self._pending = None

    def close(self) -> None:
        """Waits, and ends the threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def restore(
        self,
        like: TrainState,
        *,
        frozen: Any = None,
        data: Resumable | None = None,
        step: int | None = None,
        release: Any = None,
    ) -> TrainState | None:
        """The newest complete checkpoint, or None where there is none.

        A damaged checkpoint is passed over with a warning. The mesh may differ from the one that
        the checkpoint was saved on.

        Args:
          like: `Step.abstract_state(…)` with the variables that were saved; says which shapes,
            dtypes and shardings the arrays get.
          frozen: the weights that were left out when saving.
          data: iterator to move to the saved position.
          step: this one, rather than the newest.
          release: arrays to delete before the checkpoint's take their place, once it is known to
            fit; so that a state of which memory holds one can be restored.

        Raises:
          CheckpointError: the checkpoint belongs to another configuration, other shapes or other
            base weights (names the first difference), or no checkpoint can be read.
        """
        saved = self.steps()
        damage = ""
        for number in reversed(saved if step is None else [step]):
            try:
                run = json.loads((self.directory / str(number) / "run" / "run.json").read_text())
            except (OSError, ValueError) as e:
                damage = self._damaged(number, e)
                continue
            self._check(number, run, like, frozen)
            for x in jax.tree.leaves(release):
                x.delete()
            position = _Json(_data_name(), None)
            wanted = {"state": jax.tree.map(_on_device, _as_dict(like)), "data": position}
            try:
                restored = self._orbax.load_checkpointables(number, wanted)["state"]
            except Exception as e:  # Orbax and TensorStore raise many kinds on damaged files.
                damage = self._damaged(number, e)
                continue
            if data is not None:
                if position.value is None:
                    raise CheckpointError(
                        f"{self.directory / str(number)} holds no data position, so the data cannot"
                        " resume; train into another directory"
                    )
                data.set_state(_unpack(position.value))
            return TrainState(**restored)
        if damage:
            raise CheckpointError(f"no checkpoint can be read; {damage}")
        return None

    def _check(self, number: int, run: Mapping[str, Any], like: TrainState, frozen: Any) -> None:
        where = self.directory / str(number)
        for field, saved, now in _differences(run["config"], self._config):
            if not any(field == f or field.startswith(f + ".") for f in self._free):
                raise CheckpointError(
                    f"{where} was saved with {field} = {saved!r}, this run has {now!r}; "
                    "use the same configuration, or another directory"
                )
        for path, saved, now in _differences(run["arrays"], _shapes(like), dotted=False):
            raise CheckpointError(
                f"{where}: {path} is {saved or 'absent'}, this run needs {now or 'none'}; "
                "use the same model and optimizer, or another directory"
            )
        saved, now = run["base"]["fingerprint"], self._base_record(frozen)["fingerprint"]
        if saved != now:
            raise CheckpointError(
                f"{where} was trained on top of other base weights (from {run['base']['path']}, "
                f"fingerprint {saved}) than this run's ({now}); load those"
            )

    def _base_record(self, frozen: Any) -> dict[str, Any]:
        if frozen and self._fingerprint is None:
            self._fingerprint = fingerprint(frozen)
        return {"path": self._base, "fingerprint": self._fingerprint if frozen else None}

    def _failed(self, error: Exception) -> CheckpointError:
        step, self._pending = self._pending, None
        _remove(self.directory, f"{step}.orbax-checkpoint-tmp*")
        return CheckpointError(
            f"cannot save step {step} in {self.directory}: {_reason(error)}; earlier checkpoints "
            "are intact: make room and start again"
        )

    def _damaged(self, number: int, error: Exception) -> str:
        text = f"checkpoint {self.directory / str(number)} is damaged ({_reason(error)})"
        warnings.warn(f"{text}; trying the one before it", stacklevel=3)
        return text


class _Json:
    """A JSON file inside a checkpoint, as Orbax's `StatefulCheckpointable`.

    Each process writes and reads a file of its own name. A position saved by fewer processes is
    read from the first: the iterator knows whether it can use it.
    """

    def __init__(self, name: str, value: Any, primary_only: bool = False) -> None:
        self.name, self.value, self.primary_only = name, value, primary_only

    async def save(self, directory: Any) -> Any:
        text = json.dumps(self.value, indent=1)

        async def write() -> None:
            parent = Path(await directory.await_creation())
            if not self.primary_only or jax.process_index() == 0:
                (parent / self.name).write_text(text)

        return write()

    async def load(self, directory: Any) -> Any:
        async def read() -> None:
            path = Path(directory) / self.name
            path = path if path.exists() else path.with_name(_data_name(0))
            self.value = json.loads(path.read_text())

        return read()


def _data_name(process: int | None = None) -> str:
    return f"process_{jax.process_index() if process is None else process}.json"


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def _on_device(x: Any) -> jax.ShapeDtypeStruct:
    # Without a sharding Orbax would look for the devices of the run that saved.
    sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _shapes(state: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(_as_dict(state))
    names = ((jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in leaves)
    return {name: f"{x.dtype.name}{list(x.shape)}" for name, x in names}


def _differences(saved: Any, now: Any, prefix: str = "", dotted: bool = True) -> Iterable[Any]:
    """(field, saved, now) wherever two JSON values differ."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in {**saved, **now}:
            name = f"{prefix}.{key}" if dotted and prefix else key
            yield from _differences(saved.get(key), now.get(key), name, dotted)
    elif saved != now:
        yield prefix, saved, now


def _pack(value: Any) -> Any:
    """JSON-able form of a position: bytes become {"base64": …}."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key: _pack(v) for key, v in value.items()}
    return [_pack(v) for v in value] if isinstance(value, list | tuple) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"base64"}:
            return base64.b64decode(value["base64"])
        return {key: _unpack(v) for key, v in value.items()}
    return [_unpack(v) for v in value] if isinstance(value, list) else value


def _remove(directory: Path, pattern: str) -> None:
    """Deletes what a failed save left, once its other files are no longer on their way."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Orbax's own join would raise what the thread raised.
            threading.Thread.join(thread, timeout=60)
    for left in directory.glob(pattern):
        shutil.rmtree(left, ignore_errors=True)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0][:300]
