"""Whether a checkpoint belongs to the run that is about to load it."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from fmjax.core.errors import CheckpointError
from fmjax.train.state import TrainState


def check_config(
    where: Path, saved: Mapping[str, Any], now: Mapping[str, Any], free: Iterable[str]
) -> None:
    """Raises CheckpointError for the first field that differs, but for those that are free."""
    for field, a, b in _differences(saved, now):
        if not any(field == f or field.startswith(f + ".") for f in free):
            raise CheckpointError(
                f"{where} was saved with {field} = {a!r}, this run has {b!r}; "
                "use the same configuration, or another directory"
            )


def check_arrays(where: Path, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises CheckpointError for the first array of another shape or dtype; see `shapes`."""
    for path, a, b in _differences(saved, now, dotted=False):
        raise CheckpointError(
            f"{where}: {path} is {a or 'absent'}, this run needs {b or 'none'}; "
            "use the same model and optimizer, or another directory"
        )


def check_base(where: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the frozen weights are others, by their fingerprint."""
    if saved["fingerprint"] != now["fingerprint"]:
        raise CheckpointError(
            f"{where} was trained on top of other base weights (from {saved['path']}, fingerprint "
            f"{saved['fingerprint']}) than this run's ({now['fingerprint']}); load those"
        )


def as_dict(state: TrainState) -> dict[str, Any]:
    """The fields of a state; a node of the tree, not a copy."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def shapes(state: Any) -> dict[str, str]:
    """{path in the state: "float32[2, 3]"}."""
    leaves = jax.tree_util.tree_leaves_with_path(as_dict(state))
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
