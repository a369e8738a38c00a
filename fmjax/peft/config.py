"""What a LoRA adapter is: ranks, scales and which layers it touches."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fmjax.core.errors import ConfigError

ALL_LINEAR = "all-linear"
BIASES = ("none", "all", "lora_only")

Names = tuple[str, ...]
Pattern = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (arXiv:2106.09685): y = W x + s · B A dropout(x), s = alpha / rank.

    Layers are named and matched as in the PEFT library, by their Hugging Face module names such as
    "model.layers.3.self_attn.q_proj", so that a spec means the same here and there.

    Attributes:
      rank: r, columns of A and rows of B.
      alpha: numerator of the scale s.
      targets: names, each matching a whole module name or its last components ("q_proj",
        "self_attn.q_proj"); or "all-linear", every linear layer but the output head; or a regular
        expression that matches whole module names.
      dropout: rate on the input of the low-rank branch while training. Embeddings have none.
      exclude: names or a regular expression, matched like `targets`, to leave out.
      rank_pattern: {regex: rank} for layers whose name ends in the regex; the first match counts.
        A mapping is stored as a tuple of pairs.
      alpha_pattern: {regex: alpha}, likewise.
      layers_to_transform: numbers of the layers to adapt; None means all. Not with a string in
        `targets`. A target that is a whole module name is adapted whatever its number.
      layers_pattern: names of the list that the numbers count ("layers", "h"); default any.
      use_rslora: s = alpha / √rank (arXiv:2312.03732).
      modules_to_save: modules that are trained whole, such as the new head of a classifier
        (`fmjax.peft.head_modules` names it). A name covers every module whose name ends in it and
        all that this holds; what it covers has no low-rank factors. The adapter holds float32
        copies of these parameters, which are used in place of the base's.
      use_dora: DoRA (arXiv:2402.09353): y = m · (W + s · B A) x / ‖W + s · B A‖, with a trained
        magnitude m for each output, starting at the norm of W's row.
      bias: which biases of the base are trained with it: "none", "all", or "lora_only", those of
        adapted layers. The adapter holds copies of them, as of modules_to_save.
      lora_bias: B has a bias of its own.
      target_parameters: names, matched like `targets`, of matrices that are no layers of their own:
        a mixture's experts, all of a layer at once ("mlp.experts.gate_up_proj",
        "mlp.experts.down_proj"), and its router ("mlp.gate.weight"). Each expert has factors of
        the full rank. `exclude` and `layers_to_transform` do not touch them.

    Raises:
      ConfigError: a value out of range, a broken regular expression, or fields that exclude each
        other.
    """

    rank: int = 8
    alpha: float = 16
    targets: Names | str = ("q_proj", "v_proj")
    dropout: float = 0.0
    exclude: Names | str = ()
    rank_pattern: Pattern = ()
    alpha_pattern: Pattern = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: Names = ()
    use_rslora: bool = False
    modules_to_save: Names = ()
    use_dora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    target_parameters: Names = ()

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("targets", _names("targets", self.targets))
        put("exclude", _names("exclude", self.exclude))
        put("layers_pattern", _names("layers_pattern", self.layers_pattern, listed=True))
        put("modules_to_save", _names("modules_to_save", self.modules_to_save, listed=True))
        put("target_parameters", _names("target_parameters", self.target_parameters, listed=True))
        put("rank_pattern", _pattern("rank_pattern", self.rank_pattern))
        put("alpha_pattern", _pattern("alpha_pattern", self.alpha_pattern))
        put("layers_to_transform", _layers(self.layers_to_transform))
        if isinstance(self.targets, str) and self.targets.lower() == ALL_LINEAR:
            put("targets", ALL_LINEAR)
        for name, rank in (("rank", self.rank), *self.rank_pattern):
            if type(rank) is not int or rank < 1:
                raise ConfigError(f"LoRA: rank {rank!r} of {name!r} must be a positive integer")
        for name, alpha in (("alpha", self.alpha), *self.alpha_pattern):
            if type(alpha) not in (int, float) or not math.isfinite(alpha):
                raise ConfigError(f"LoRA: alpha {alpha!r} of {name!r} must be a finite number")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA: dropout {self.dropout!r} must be a rate in [0, 1)")
        if not self.targets and not self.target_parameters:
            raise ConfigError("LoRA: targets is empty; name layers, or use 'all-linear'")
        if isinstance(self.targets, str) and self.layers_to_transform is not None:
            raise ConfigError(
                f"LoRA: layers_to_transform does not go with targets={self.targets!r}; "
                "name the targets in a tuple, or put the layer numbers into the regex"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("LoRA: layers_pattern needs layers_to_transform")
        if self.layers_pattern:
            _compiled("layers_pattern", self.layers_pattern)
        self._check_variants()

    def _check_variants(self) -> None:
        if self.bias not in BIASES:
            raise ConfigError(
                f"LoRA: bias {self.bias!r} is unknown; choose from {', '.join(BIASES)}"
            )
        for name in ("use_rslora", "use_dora", "lora_bias"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"LoRA: {name}={getattr(self, name)!r} must be True or False")
        if self.use_dora and self.lora_bias:
            raise ConfigError("LoRA: use_dora and lora_bias exclude each other; choose one")
        if self.use_dora and 0 in (self.alpha, *(alpha for _, alpha in self.alpha_pattern)):
            raise ConfigError("LoRA: use_dora needs an alpha other than 0")
        given = [n for n in ("dropout", "use_dora", "lora_bias") if getattr(self, n)]
        if self.target_parameters and given:
            raise ConfigError(
                f"LoRA: {given[0]}={getattr(self, given[0])!r} does not go with target_parameters; "
                "leave one of them out"
            )

    def rank_of(self, name: str) -> int:
        """The rank of the layer with this Hugging Face module name."""
        return _lookup(self.rank_pattern, name, self.rank)

    def scale_of(self, name: str) -> float:
        """The scale s of the layer with this Hugging Face module name."""
        rank = self.rank_of(name)
        alpha = _lookup(self.alpha_pattern, name, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def excludes(self, name: str) -> bool:
        """Whether `exclude` covers this module name."""
        return names_match(self.exclude, name)

    def saves(self, name: str) -> bool:
        """Whether `modules_to_save` cover this module or one that holds it."""
        return bool(saved_by(self.modules_to_save, name))

    def matches(self, name: str) -> bool:
        """Whether `targets` cover this module name, `exclude` and "all-linear" apart."""
        if isinstance(self.targets, str) or name in self.targets:
            return names_match(self.targets, name)
        return names_match(self.targets, name) and self._layer_matches(name)

    def _layer_matches(self, name: str) -> bool:
        if self.layers_to_transform is None:
            return True
        # The first number below a list counts: experts are numbered inside layers.
        for pattern in self.layers_pattern or (r"[^.]*",):
            prefix = r"(?:^|.*?\.)" if self.layers_pattern else r".*?\."
            if found := re.match(rf"{prefix}{pattern}\.(\d+)\.", name):
                return int(found[1]) in self.layers_to_transform
        return False


def names_match(wanted: Names | str, name: str) -> bool:
    """Names match whole or as the last components; a string is a regex for the whole name."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return name in wanted or any(name.endswith(f".{w}") for w in wanted)


def saved_by(wanted: Names, name: str) -> list[str]:
    """The module and those that hold it, outermost first, as far as their names end in `wanted`."""
    parts = name.split(".")
    holders = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return [holder for holder in holders if holder.endswith(wanted)]


def pattern_matches(pattern: str, name: str) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern` covers a module name."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _lookup(patterns: Pattern, name: str, default: Any) -> Any:
    return next((value for key, value in patterns if pattern_matches(key, name)), default)


def _names(field: str, value: Any, listed: bool = False) -> Names | str:
    if isinstance(value, str) and not listed:
        if value:
            _compiled(field, [value])
        return value
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple | set | frozenset) or not all(
        isinstance(name, str) and name for name in names
    ):
        raise ConfigError(f"LoRA: {field}={value!r} must be names or a regular expression")
    # Sets have no order of their own; a spec must not depend on the hash seed.
    return tuple(sorted(names) if isinstance(names, set | frozenset) else names)


def _pattern(field: str, value: Any) -> Pattern:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    try:
        pairs = tuple((str(key), number) for key, number in pairs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"LoRA: {field}={value!r} must map layer names to numbers") from e
    _compiled(field, [key for key, _ in pairs])
    return pairs


def _layers(value: Any) -> tuple[int, ...] | None:
    numbers = (value,) if isinstance(value, int) else tuple(value or ())
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ConfigError(f"LoRA: layers_to_transform={value!r} must be layer numbers from 0")
    return numbers or None


def _compiled(field: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as e:
            raise ConfigError(f"LoRA: {field}: {pattern!r} is not a regular expression: {e}") from e
