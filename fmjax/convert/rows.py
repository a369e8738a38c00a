"""The weights map of a family: a list of rows, read by import, export and adapters alike.

A row pairs a tensor name of the published files with a parameter path and the transform between
their layouts. A name with "{layer}" stands for one tensor per layer. Its parameter is either
stacked over layers at the path as written ("layers/mlp/up_proj/kernel", leading axis L) or, when
the model is built with `scan_layers=False`, one parameter per layer ("layers_0/mlp/…"). A name
with "{expert}" besides stands for one tensor per expert, always stacked, after the layers.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmjax.convert.transforms import IDENTITY, Transform
from fmjax.core.errors import CheckpointError

LAYER, EXPERT = "{layer}", "{expert}"


@dataclass(frozen=True)
class Fused:
    """Another spelling: the tensor is a part of a larger one.

    If the row has an "{expert}", the larger tensor stacks all experts on its leading axis. The
    parts, of equal size, lie side by side along what is then the first axis.

    Attributes:
      hf: name of the larger tensor, with "{layer}".
      part: number of this part.
      parts: how many there are.
    """

    hf: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Row:
    """One line of a weights map.

    Attributes:
      hf: tensor name in the file, under the prefix that a model with its head writes.
      path: parameter path.
      transform: layout change from file to parameter.
      copy: the tensor is a second name of a parameter that another row reads (a tied head).
        Files may hold it and must then repeat the other bit for bit; it is never written.
      aliases: a tensor's name → other names that files may hold it under; never written.
      fused: where files of another layout hold the tensor; read, never written.
      integer: the file has an i64 where the parameter is a float (a count of batches).
      optional: files may lack the tensor; the parameter then is as in a new model.
      module: name of the module that holds the tensor in transformers' memory, and so in adapters,
        where that is another than the file's (transformers 5 renames on reading and writing).
    """

    hf: str
    path: str
    transform: Transform = IDENTITY
    copy: bool = False
    aliases: Callable[[str], Sequence[str]] | None = None
    fused: Fused | None = None
    integer: bool = False
    optional: bool = False
    module: str | None = None


@dataclass(frozen=True)
class Target:
    """A parameter and the file tensors that it is made of.

    Attributes:
      path: parameter path, as the model at hand spells it.
      shape: shape of the whole parameter.
      row: the row that says so.
      keys: canonical tensor names; several if the parameter has leading axes that the file tensors
        lack, in the order of these axes: layers if `stacked`, then experts.
      stacked: the parameter has a leading layers axis.
      layer: number of the first key's layer.
    """

    path: str
    shape: tuple[int, ...]
    row: Row
    keys: tuple[str, ...]
    stacked: bool
    layer: int = 0

    @property
    def lead(self) -> tuple[int, ...]:
        """Sizes of the leading axes that the file tensors lack."""
        return self.shape[: self.stacked + (EXPERT in self.row.hf)]

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of each of the file tensors."""
        return self.row.transform.file_shape(self.shape[len(self.lead) :])

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that hold the tensors, one for each key."""
        if self.row.module is None:
            return tuple(key.rpartition(".")[0] for key in self.keys)
        numbers = (self.layer_of(i) for i in range(len(self.keys)))
        return tuple(self.row.module.replace(LAYER, str(n)) for n in numbers)

    def index(self, i: int) -> tuple[int, ...]:
        """Where on the leading axes key number i stands."""
        return tuple(int(n) for n in np.unravel_index(i, self.lead)) if self.lead else ()

    def layer_of(self, i: int) -> int:
        """Number of the layer of key number i."""
        return self.layer + (self.index(i)[0] if self.stacked else 0)


def targets(rows: Sequence[Row], flat: Mapping[str, Any]) -> list[Target]:
    """Lays the rows over the parameters `{path: leaf with a shape}` of one model.

    Targets come in the order of the rows, layers ascending within a row, copies included.

    Raises:
      CheckpointError: a row without parameter, a parameter without row or with two.
    """
    found = [t for row in rows for t in _of_row(row, flat)]
    mapped: dict[str, Row] = {}
    for target in found:
        if target.row.copy:
            continue
        if target.path in mapped:
            first = mapped[target.path].hf
            raise CheckpointError(
                f"parameter {target.path!r} is mapped by both {first!r} and {target.row.hf!r}; "
                "keep one row of the weights map"
            )
        mapped[target.path] = target.row
    if missing := sorted(flat.keys() - mapped.keys()):
        raise CheckpointError(
            f"no row of the weights map names parameter {missing[0]!r}"
            f"{_more(missing)}; add a row for it"
        )
    return found


def _of_row(row: Row, flat: Mapping[str, Any]) -> Iterator[Target]:
    if LAYER not in row.hf:
        if row.path not in flat:
            raise _no_parameter(row)
        yield Target(row.path, tuple(flat[row.path].shape), row, (row.hf,), False)
    elif row.path in flat:
        shape = tuple(flat[row.path].shape)
        yield Target(row.path, shape, row, _keys(row, range(shape[0]), shape[1:]), True)
    else:
        layer = 0
        while path := next((p for p in unstacked(row.path, layer) if p in flat), None):
            shape = tuple(flat[path].shape)
            yield Target(path, shape, row, _keys(row, [layer], shape), False, layer)
            layer += 1
        if not layer:
            raise _no_parameter(row)


def _keys(row: Row, layers: Iterable[int], shape: tuple[int, ...]) -> tuple[str, ...]:
    """Tensor names for these layers; `shape` is of one layer's parameter."""
    experts = range(shape[0]) if EXPERT in row.hf else [0]
    pairs = itertools.product(layers, experts)
    return tuple(row.hf.format(layer=layer, expert=expert) for layer, expert in pairs)


def _no_parameter(row: Row) -> CheckpointError:
    return CheckpointError(
        f"the weights map reads {row.hf!r} into {row.path!r}, which the model does not have; "
        "the rows and the model come from different configurations"
    )


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def unstacked(path: str, layer: int) -> list[str]:
    """Spellings of a stacked path for one layer: "layers/a/b" → "layers_3/a/b", "layers/a_3/b"…

    Only one of them exists in a model; which segment is the stack is the model's affair.
    """
    parts = path.split("/")
    return [
        "/".join([*parts[:i], f"{parts[i]}_{layer}", *parts[i + 1 :]]) for i in range(len(parts))
    ]


# --- module names, for adapters and for messages ------------------------------------------------


def hf_module(rows: Sequence[Row], path: str, layer: int | None = None) -> str:
    """HF name of the module at a parameter-tree path.

    "layers/self_attn/q_proj" → "model.layers.{layer}.self_attn.q_proj", or with its number where
    `layer` is given or the path holds it ("layers_3/self_attn/q_proj").

    Raises:
      CheckpointError: a module without parameters of its own, or an unknown one.
    """
    for row in rows:
        if row.copy:
            continue
        module = row.path.rpartition("/")[0]
        name = row.hf.rpartition(".")[0]
        if module == path:
            return name if layer is None else name.replace(LAYER, str(layer))
        if LAYER in name and (number := _layer_of(module, path)) is not None:
            return name.replace(LAYER, str(number))
    raise CheckpointError(
        f"no module {path!r} in the weights map; name one that holds weights, "
        f"such as {rows[0].path.rpartition('/')[0]!r}"
    )


def module_path(rows: Sequence[Row], name: str) -> tuple[str, int | None]:
    """Path and layer number of an HF module name; the inverse of `hf_module`.

    "model.layers.3.self_attn.q_proj" → ("layers/self_attn/q_proj", 3); "lm_head" → ("lm_head",
    None). The path is the stacked spelling; `unstacked` gives the others.

    Raises:
      CheckpointError: no row names a tensor of this module.
    """
    for row in rows:
        pattern = re.escape(row.hf.rpartition(".")[0]).replace(re.escape(LAYER), r"(\d+)")
        if not row.copy and (match := re.fullmatch(pattern, name)):
            number = int(match[1]) if match.groups() else None
            return row.path.rpartition("/")[0], number
    raise CheckpointError(
        f"no module {name!r} in the weights map; names look like {rows[0].hf.rpartition('.')[0]!r}"
    )


def _layer_of(module: str, path: str) -> int | None:
    """Layer number with which `path` spells the stacked `module`, if it does."""
    if not (numbers := re.findall(r"_(\d+)(?=/|$)", path)):
        return None
    return next((int(n) for n in numbers if path in unstacked(module, int(n))), None)
