"""A directory of weights in the Hugging Face layout, seen as one mapping of unread tensors."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmjax.convert.rows import EXPERT, LAYER, Row, Target, targets
from fmjax.convert.safetensors import Tensor, check_castable, read_header
from fmjax.core.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

# Tables that other implementations store beside the weights and that are recomputed here. A row
# that names such a tensor goes first.
BUFFERS = re.compile(r"(^|\.)(rotary_emb\..+|inv_freq|position_ids|attn\.(bias|masked_bias))$")


def open_directory(directory: str | Path) -> dict[str, Tensor]:
    """Tensor name → tensor, from `model.safetensors` or else from an index and its shards.

    Only headers are read. Where both layouts lie side by side the single file counts, as in
    transformers.

    Raises:
      CheckpointError: no such directory, no weights, only pickle files, a damaged file, an index
        that points outside the directory, to a missing shard or past what the shards hold.
    """
    directory = Path(directory)
    if (single := directory / SINGLE).is_file():
        return read_header(single)
    if (index := directory / INDEX).is_file():
        return _open_shards(directory, index)
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a directory; give the folder that holds {SINGLE}"
        )
    if pickles := sorted(p.name for pattern in PICKLES for p in directory.glob(pattern)):
        raise CheckpointError(
            f"{directory} has only pickle weights ({pickles[0]}), which can run code when loaded "
            "and are never opened; convert them once where you trust them: AutoModel"
            ".from_pretrained(dir).save_pretrained(dir) in transformers writes safetensors"
        )
    raise CheckpointError(
        f"{directory} holds neither {SINGLE} nor {INDEX}; download the safetensors files too"
    )


def _open_shards(directory: Path, index: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    weight_map = _read_index(index)
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {file!r}; shards must be .safetensors files in the same "
                "directory"
            )
        if not (directory / file).is_file():
            raise CheckpointError(
                f"{index} names the shard {file!r}, which is missing; download it"
            )
        for name, tensor in read_header(directory / file).items():
            if name in found:
                raise CheckpointError(
                    f"tensor {name!r} is in both {found[name].file.name!r} and {file!r} of "
                    f"{directory}; remove the stale shard"
                )
            if weight_map.get(name) != file:
                raise CheckpointError(
                    f"{file!r} holds tensor {name!r}, which {INDEX} does not place there; "
                    f"download the index and the shards of {directory} from one version"
                )
            found[name] = tensor
    if missing := sorted(weight_map.keys() - found.keys()):
        raise CheckpointError(
            f"{INDEX} places tensor {missing[0]!r} in {weight_map[missing[0]]!r}, which does not "
            f"hold it; download the index and the shards of {directory} from one version"
        )
    return found


def _read_index(index: Path) -> Mapping[str, str]:
    match read_json(index):
        case {"weight_map": dict(weight_map)} if all(
            isinstance(v, str) for v in weight_map.values()
        ):
            return weight_map
    raise CheckpointError(f"{index} has no weight_map of names to files; download it again")


def read_json(file: Path) -> Any:
    """A JSON file's content; raises CheckpointError naming the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise CheckpointError(f"cannot read {file}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{file} is not valid JSON ({e}); download it again") from e


@dataclass(frozen=True)
class Match:
    """A parameter with the file tensors that fill it, shapes checked."""

    target: Target
    tensors: tuple[Tensor, ...]


def match(
    tensors: Mapping[str, Tensor],
    rows: Sequence[Row],
    flat: Mapping[str, Any],
    head_tensors: re.Pattern[str] | None = None,
    new_head: bool = False,
) -> list[Match]:
    """Pairs every parameter with its tensors and every tensor with its parameter.

    Names match with or without their first component, the name of the base model under its head:
    "model.norm.weight" and "norm.weight", "transformer.wte.weight" and "wte.weight".

    Args:
      tensors: what the files hold.
      rows: the weights map.
      flat: {path: leaf with shape and dtype} of the model's parameters.
      head_tensors: names of what belongs to heads, where files may hold those of another head:
        tensors of modules that the model does not have are then left alone.
      new_head: parameters of a head are left out of the result where the files lack them, or hold
        them in another shape (another number of labels).

    Returns:
      One match a parameter, but for optional ones and those of a new head that the files lack.

    Raises:
      CheckpointError: a tensor that is missing, unexpected, there twice, of another shape or of
        integers where floats are wanted; a copy (a tied head) that differs from its original.
    """
    rest = _unfused(tensors, rows)
    matches: list[Match] = []
    copies: list[Match] = []
    expected: list[str] = []
    for target in targets(rows, flat):
        expected += target.keys
        found = [_take(rest, key, target.row) for key in target.keys]
        missing = [key for key, t in zip(target.keys, found, strict=True) if t is None]
        if target.row.copy:
            if not missing:
                copies.append(_checked(target, found, flat[target.path].dtype))
        elif new_head and _found(head_tensors, target.keys[0]) and not _fits(target, found):
            continue
        elif missing and not target.row.optional:
            of_head = _found(head_tensors, missing[0])
            raise CheckpointError(_missing(missing[0], target, tensors, of_head))
        elif not missing:
            matches.append(_checked(target, found, flat[target.path].dtype))
    # What is left of a head that the model has (a bias, say) would change what it computes.
    own = set() if new_head else {_module(key) for key in expected}
    for name, tensor in rest.items():
        of_other_head = _found(head_tensors, name) and _module(name) not in own
        if not BUFFERS.search(name) and not of_other_head:
            raise CheckpointError(
                f"{tensor.file} holds {name!r}, which this configuration has no parameter for; "
                "check config.json (architectures, biases, number of layers, tied embeddings, "
                "quantisation)"
            )
    originals = {m.target.path: m for m in matches}
    for copy in copies:
        if copy.target.path in originals:
            _check_copy(copy, originals[copy.target.path])
    return matches


def _unfused(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Tensor]:
    """The tensors, with each that holds several under another layout cut into its parts."""
    rest = dict(tensors)
    for row in rows:
        if row.fused is None:
            continue
        names = (re.escape(name) for name in spellings(row.fused.hf, row))
        pattern = "|".join(names).replace(re.escape(LAYER), r"(\d+)")
        for whole in tensors.values():
            if not (found := re.fullmatch(pattern, whole.name)):
                continue
            rest.pop(whole.name, None)
            for expert, part in enumerate(_parts(whole, row)):
                key = row.hf.format(layer=found[found.lastindex], expert=expert)
                if key in rest:
                    raise CheckpointError(
                        f"{whole.file} holds both {key!r} and {whole.name!r}, one parameter twice; "
                        "remove one"
                    )
                rest[key] = part
    return rest


def _parts(whole: Tensor, row: Row) -> list[Tensor]:
    """The tensors that one row reads out of a fused one: contiguous stretches of it."""
    experts = whole.shape[:1] if EXPERT in row.hf else ()
    axis = len(experts)
    size, rest = divmod(whole.shape[axis], row.fused.parts) if len(whole.shape) > axis else (0, 1)
    if rest:
        raise CheckpointError(
            f"{whole.file}: {whole.name!r} has shape {list(whole.shape)}, which is not "
            f"{row.fused.parts} equal parts; download the file again"
        )
    shape = (size, *whole.shape[axis + 1 :])
    nbytes = math.prod(shape) * whole.dtype.itemsize
    starts = (e * row.fused.parts + row.fused.part for e in range(math.prod(experts)))
    return [replace(whole, shape=shape, start=whole.start + n * nbytes) for n in starts]


def _found(pattern: re.Pattern[str] | None, name: str) -> bool:
    return pattern is not None and pattern.search(name) is not None


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _fits(target: Target, found: Sequence[Tensor | None]) -> bool:
    return all(t is not None and t.shape == target.file_shape for t in found)


def spellings(name: str, row: Row) -> list[str]:
    """The names under which files may hold a tensor of this row, its own first."""
    others = row.aliases(name) if row.aliases else ()
    return list(dict.fromkeys([name, name.partition(".")[2], *others]))


def _take(rest: dict[str, Tensor], key: str, row: Row) -> Tensor | None:
    hits = [name for name in spellings(key, row) if name in rest]
    if len(hits) > 1:
        raise CheckpointError(
            f"{rest[hits[0]].file} holds both {hits[0]!r} and {hits[1]!r}, one parameter twice; "
            "remove one"
        )
    return rest.pop(hits[0]) if hits else None


def _checked(target: Target, found: Iterable[Tensor | None], dtype: np.dtype) -> Match:
    tensors = tuple(t for t in found if t is not None)
    for tensor in tensors:
        if tensor.shape != target.file_shape:
            raise CheckpointError(
                f"{tensor.file}: {tensor.name!r} has shape {list(tensor.shape)}, config.json asks "
                f"for {list(target.file_shape)}; use the config.json that belongs to these weights"
            )
        check_castable(tensor.name, tensor.dtype, np.int64 if target.row.integer else dtype)
    return Match(target, tensors)


def _missing(key: str, target: Target, tensors: Mapping[str, Tensor], of_head: bool) -> str:
    where = next(iter(tensors.values())).file.parent if tensors else "the checkpoint"
    remedy = (
        "pass new_head=jax.random.key(0) to start the head from random values, or choose a head "
        "that the weights have"
        if of_head
        else "check config.json against the weights, or download all of them"
    )
    return f"{where} lacks tensor {key!r} (parameter {target.path!r}); {remedy}"


def _check_copy(copy: Match, original: Match) -> None:
    for a, b in zip(copy.tensors, original.tensors, strict=True):
        if a.dtype != b.dtype or _raw(a) != _raw(b):
            raise CheckpointError(
                f"{a.file}: {a.name!r} differs from {b.name!r}, yet the configuration ties them; "
                "set tie_word_embeddings to false in config.json"
            )


def _raw(tensor: Tensor) -> memoryview:
    # Memoryviews compare like memcmp, without numpy's temporary of one bool per element.
    return memoryview(tensor.view().reshape(-1).view(np.uint8))
