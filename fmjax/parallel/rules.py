"""Ready rule lists: logical axis → mesh axes.

A list is data: print it with `table`, or put pairs of your own in front of it, since the first pair
for a name counts. Where two dimensions of one array ask for the same mesh axis, the one whose rule
stands first has it.

Every list lays the batch over `stage`, `data`, `fsdp` and `expert` and the sequence over `context`,
and all but the first two lay the layers over `stage`. A mesh axis of size 1, or one that the mesh
lacks, costs nothing, so a list serves every smaller mesh too.
"""

from collections.abc import Sequence

from jax.sharding import Mesh

from fmjax.core.errors import ShardingError
from fmjax.core.logical import Rules, mesh_axes
from fmjax.parallel.mesh import AXES

MEANING = {
    "batch": "rows of the batch",
    "seq": "positions",
    "act_embed": "width of the residual stream",
    "act_heads": "query heads, while attending",
    "act_kv_heads": "key and value heads, while attending",
    "act_mlp": "feed-forward width, of activations",
    "act_vocab": "words, of logits",
    "vocab": "rows of embedding tables and heads",
    "embed": "model width, of weights",
    "heads": "query heads, of weights",
    "kv_heads": "key and value heads, of weights",
    "mlp": "feed-forward width, of weights",
    "expert": "experts",
    "qkv": "query, key and value in one kernel",
    "positions": "rows of position tables",
    "norm": "norms' scales",
    "layers": "layers of a stack",
    "lora": "rank of adapters",
    "optimizer": "optimizer state, beyond its weights",
}
"""What each logical axis is: the names that a rule may have."""


def _rules(*pairs: tuple[str, str | tuple[str, ...] | None]) -> Rules:
    """The pairs, and (name, None) for every other name."""
    named = {name for name, _ in pairs}
    return (*pairs, *((name, None) for name in MEANING if name not in named))


# Outside the layers, the devices of all stages share the batch; `stage` comes first, so that no row
# moves on its way into the pipeline (`fmjax.nn.pipeline`).
_INPUTS = (("batch", ("stage", "data", "fsdp", "expert")), ("seq", "context"))
_TENSOR = (
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
)
_STAGES = ("layers", "stage")
_WEIGHTS = (("expert", "expert"), ("embed", "fsdp"), _STAGES)

RULES: dict[str, Rules] = {
    "ddp": _rules(*_INPUTS),
    "zero1": _rules(*_INPUTS, ("optimizer", ("data", "fsdp", "expert"))),
    "fsdp": _rules(*_INPUTS, *_WEIGHTS),
    "tensor": _rules(*_INPUTS, *_TENSOR, ("expert", "expert"), _STAGES),
    "fsdp_tensor": _rules(*_INPUTS, *_TENSOR, *_WEIGHTS),
    # Behind the tensor rules: where heads, MLP or words are split the sequence is not.
    "sequence": _rules(_INPUTS[0], *_TENSOR, ("seq", ("context", "tensor")), *_WEIGHTS),
    # The devices of the expert axis share the weights that are no expert's.
    "expert": _rules(
        *_INPUTS, *_TENSOR, ("expert", "expert"), ("embed", ("fsdp", "expert")), _STAGES
    ),
}
"""The ready lists by name.

ddp          every device holds all weights (data parallelism).
zero1        the same, with the optimizer's state split (ZeRO stage 1, arXiv:1910.02054).
fsdp         weights, gradients and optimizer state are split over `fsdp` (ZeRO stage 3).
tensor       heads, feed-forward width and vocabulary are split (arXiv:1909.08053).
fsdp_tensor  both; what runs use unless told otherwise, as it serves every mesh.
sequence     both, and what lies between attention and MLP is split along the sequence over
             `tensor` (sequence parallelism, arXiv:2205.05198).
expert       experts over `expert`, which for all other weights is more of `fsdp`.
"""

DEFAULT_RULES: Rules = RULES["fsdp_tensor"]
REPLICATED_RULES: Rules = RULES["ddp"]


def parse_rules(text: str, default: str = "fsdp_tensor") -> Rules:
    """ "fsdp,mlp=tensor,embed=none" → the list of that name with these pairs in front.

    Args:
      text: a name of `RULES`, pairs "logical=mesh axis", or both, separated by commas; several mesh
        axes are joined by "+", and "none" replicates.
      default: the list where `text` names none.

    Raises:
      ShardingError: a list, logical axis or mesh axis that does not exist.
    """
    name, pairs = default, []
    for place, item in enumerate(part.strip() for part in text.split(",") if part.strip()):
        logical, equals, value = (part.strip() for part in item.partition("="))
        if not equals and place == 0:
            name = logical
            continue
        if not equals or not value:
            raise ShardingError(
                f"--rules {text}: write a list and pairs, as in fsdp,mlp=tensor,embed=none"
            )
        if logical not in MEANING:
            raise ShardingError(
                f"--rules {text}: no logical axis {logical!r}; there are {', '.join(MEANING)}"
            )
        axes = () if value == "none" else tuple(part.strip() for part in value.split("+"))
        for axis in axes:
            if axis not in AXES:
                raise ShardingError(
                    f"--rules {text}: no mesh axis {axis!r}; there are {', '.join(AXES)}, or none"
                )
        pairs.append((logical, axes or None))
    if name not in RULES:
        raise ShardingError(f"--rules {text}: no list {name!r}; there are {', '.join(RULES)}")
    return (*pairs, *RULES[name])


def table(rules: Rules | str, mesh: Mesh | None = None) -> str:
    """A rule list as text, a line for each logical axis: what it is and where it goes.

    Args:
      rules: a list, or the name of one.
      mesh: leaves out the mesh axes that it has not, and gives the size of the others.
    """
    rules = RULES[rules] if isinstance(rules, str) else rules
    lines, seen = [], set()
    for logical, axes in rules:
        if logical in seen:
            continue
        seen.add(logical)
        where = _shown(mesh_axes(axes), mesh)
        lines.append((logical, where, MEANING.get(logical, "")))
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)


def _shown(axes: Sequence[str], mesh: Mesh | None) -> str:
    if mesh is None:
        return " × ".join(axes) or "–"
    return " × ".join(f"{a}={mesh.shape[a]}" for a in axes if mesh.shape.get(a, 1) > 1) or "–"


def unused_axes(mesh: Mesh, rules: Rules) -> tuple[str, ...]:
    """Axes of the mesh, larger than 1, that no rule uses: devices along them repeat one another."""
    firsts: dict[str, tuple[str, ...]] = {}
    for logical, axes in rules:
        firsts.setdefault(logical, mesh_axes(axes))
    used = {axis for axes in firsts.values() for axis in axes}
    return tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis not in used)
