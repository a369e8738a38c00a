"""Training checkpoints: one directory a step, written in the background, complete or absent.

The only module that imports Orbax. `DIR/STEP/` holds `state` (arrays), `data` (one JSON file a
process: where its iterator stands) and `run` (one JSON file: the configuration, what the arrays
are, and which base weights they belong to).
"""

import contextlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from orbax.checkpoint import v1

from fmjax.core.errors import CheckpointError
from fmjax.train.checkpoint_best import KeepBest, best_step
from fmjax.train.checkpoint_check import (
    as_dict,
    check_arrays,
    check_base,
    check_config,
    shapes,
)
from fmjax.train.checkpoint_files import JsonFile, data_name, pack, reason, remove_partial, unpack
from fmjax.train.fingerprint import fingerprint
from fmjax.train.state import TrainState


class Resumable(Protocol):
    """A data iterator whose position can be saved: JSON values, bytes allowed among them.

    One whose position is of its process's rows only also has `join_states(states) → state`, which
    is given those that all processes saved. Of another, a process gets the state that it saved
    itself, or process 0's where it had none: it knows whether it can use it.
    """

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class Checkpointer:
    """Saves and restores training states below one directory.

    Args:
      directory: created if it does not exist.
      keep: newest checkpoints that stay; None keeps all.
      best: (metric, "min" | "max"): also keep the checkpoint that is best by this metric, of those
        saved with a finite one; of equals, the earliest.
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
        self.best = best
        self._config = json.loads(json.dumps(config or {}))
        self._free = set(free)
        self._base = base
        self._fingerprint: str | None = None
        self._pending: int | None = None
        self._saving: Any = None  # Orbax's own handle of it
        policies = v1.training.preservation_policies
        kept = [policies.LatestN(keep)]
        if best is not None:
            kept.append(KeepBest(best))
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
            raise CheckpointError(f"cannot use {directory} for checkpoints: {reason(e)}") from e

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
        return None if self.best is None else best_step(self._orbax.checkpoints, self.best)

    def notes(self, step: int) -> dict[str, Any]:
        """Those that were saved with this step; empty where there are none."""
        return json.loads(self._run_file(step).read_text()).get("notes") or {}

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        frozen: Any = None,
        data: Resumable | None = None,
        metrics: Mapping[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          step: number of the checkpoint; an existing one of this number is replaced.
          state: whose `variables` are what is to be saved, usually only the trained part.
          frozen: the other part: not saved, but its fingerprint is.
          data: iterator whose position is saved.
          metrics: of an evaluation at this step, for `best`.
          notes: JSON values to find again.

        Raises:
          CheckpointError: this save cannot start, or the one before it failed.
        """
        self.wait()
        run = {
            "config": self._config,
            "base": self._base_record(frozen),
            "arrays": shapes(state),
            "notes": notes and dict(notes),
        }
        items = {
            "state": as_dict(state),
            "run": JsonFile("run.json", run, primary_only=True),
            "data": JsonFile(data_name(), None if data is None else pack(data.get_state())),
        }
        self._pending = step
        try:
            self._saving = self._orbax.save_checkpointables_async(
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
        finally:
            saving, self._saving = self._saving, None
            if saving is not None:
                # Its thread ends with the result, whose error, if any, is the one above.
                with contextlib.suppress(Exception):
                    saving.result()
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
                run = json.loads(self._run_file(number).read_text())
            except (OSError, ValueError) as e:
                damage = self._damaged(number, e, others=step is None)
                continue
            where = self.directory / str(number)
            check_config(where, run["config"], self._config, self._free)
            check_arrays(where, run["arrays"], shapes(like))
            check_base(where, run["base"], self._base_record(frozen))
            for x in jax.tree.leaves(release):
                x.delete()
            position = JsonFile(data_name(), None)
            wanted = {"state": jax.tree.map(_on_device, as_dict(like)), "data": position}
            try:
                restored = self._orbax.load_checkpointables(number, wanted)["state"]
            except Exception as e:  # Orbax and TensorStore raise many kinds on damaged files.
                damage = self._damaged(number, e, others=step is None)
                continue
            if data is not None:
                values = [unpack(value) for value in position.values if value is not None]
                if not values:
                    raise CheckpointError(
                        f"{self.directory / str(number)} holds no data position, so the data cannot"
                        " resume; train into another directory"
                    )
                data.set_state(_own_state(data, values))
            return TrainState(**restored)
        if damage:
            raise CheckpointError(f"no checkpoint can be read; {damage}")
        return None

    def _base_record(self, frozen: Any) -> dict[str, Any]:
        if frozen and self._fingerprint is None:
            self._fingerprint = fingerprint(frozen)
        return {"path": self._base, "fingerprint": self._fingerprint if frozen else None}

    def _run_file(self, step: int) -> Path:
        return self.directory / str(step) / "run" / "run.json"

    def _failed(self, error: Exception) -> CheckpointError:
        step, self._pending = self._pending, None
        remove_partial(self.directory, f"{step}.orbax-checkpoint-tmp*")
        return CheckpointError(
            f"cannot save step {step} in {self.directory}: {reason(error)}; earlier checkpoints "
            "are intact: make room and start again"
        )

    def _damaged(self, number: int, error: Exception, others: bool) -> str:
        text = f"checkpoint {self.directory / str(number)} is damaged ({reason(error)})"
        if others:
            warnings.warn(f"{text}; trying the one before it", stacklevel=3)
        return text


def _own_state(data: Resumable, states: list[Any]) -> Any:
    if hasattr(data, "join_states"):
        return data.join_states(states)
    return states[jax.process_index()] if jax.process_index() < len(states) else states[0]


def _on_device(x: Any) -> jax.ShapeDtypeStruct:
    # Without a sharding Orbax would look for the devices of the run that saved.
    sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
