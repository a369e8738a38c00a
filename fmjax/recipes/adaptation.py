"""A model made ready to be adapted, and what comes out of it: one place for every method."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.data import Tokenizer
from fmjax.models.registry import get_family
from fmjax.peft.base import Base
from fmjax.recipes.layout import Layout
from fmjax.recipes.models import compute_dtype
from fmjax.recipes.options import Adaptation, Hardware
from fmjax.train import (
    adamw,
    averaged,
    freeze,
    freeze_layers,
    layerwise_decay,
    lora_plus,
    with_ema,
)
from fmjax.train.fingerprint import fingerprint
from fmjax.train.state import TrainState

# Where adapters for a task go by default: the projections onto queries and values, in the
# families' own names.
QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "c_attn", "query_key_value")


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model and what is trained of it.

    Attributes:
      model: the module.
      variables: params, and the adapter where there is one.
      spec: of the adapter; None trains the params.
      settings: the method's.
    """

    model: nn.Module
    variables: dict[str, Any]
    spec: Any = None
    settings: Adaptation = Adaptation()

    @property
    def apply(self) -> Callable[..., Any]:
        """The model's `apply`, for variables as they are trained."""
        return self.model.apply if self.spec is None else peft.applied(self.spec, self.model)

    @property
    def trainable(self) -> Sequence[tuple[str, bool]] | None:
        """Rules for `make_step`; None leaves it to what there is."""
        return freeze(*self.settings.freeze) if self.settings.freeze else None

    def optimizer(
        self, rate: optax.ScalarOrSchedule, *, layer_decay: float = 1.0, **adam: float
    ) -> optax.GradientTransformation:
        """AdamW with what the method adds to it.

        Args:
          rate: learning rate.
          layer_decay: factor from each layer to the one below it.
          **adam: of `fmjax.train.adamw`.
        """
        settings, layers = self.settings, self.model.config.num_hidden_layers
        dtype = settings.trained_dtype(self.model.execution.dtype.name)
        # Moments of what is float32 are so by themselves.
        moments = None if settings.moments == dtype == "float32" else settings.moments
        parts = [adamw(rate, moment_dtype=moments, **adam)]
        if settings.lora_plus != 1:
            parts.append(lora_plus(settings.lora_plus))
        if layer_decay != 1:
            parts.append(layerwise_decay(layer_decay, layers))
        if settings.freeze_layers:
            parts.append(freeze_layers(settings.freeze_layers, layers))
        whole = optax.chain(*parts) if len(parts) > 1 else parts[0]
        return with_ema(whole, settings.ema) if settings.ema else whole

    def counted(self, state: TrainState) -> TrainState:
        """The state with the variables that count: their average where one is kept."""
        return averaged(state) if self.settings.ema else state

    def expanded(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Variables that the model itself takes: with the adapter expanded."""
        if self.spec is None:
            return dict(variables)
        return {**variables, "adapter": peft.expand(self.spec, self.model, variables["adapter"])}

    def merged(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters with what was trained folded in.

        Weights of few bits are merged as what they stand for. Virtual tokens stay in the adapter,
        which is still needed: only a new head is folded in.
        """
        params = variables["params"]
        if self.spec is None:
            return params
        adapter = variables["adapter"]
        if self.settings.positions:
            flat, copies = tree.flatten(params), tree.flatten(adapter)
            folded = {path: copies[path].astype(x.dtype) for path, x in flat.items()
                      if path in copies}  # fmt: skip
            return tree.unflatten(flat | folded)
        base = None if self.settings.precision == "none" else "dequantized"
        return peft.merge(self.model, params, adapter, base=base)

    def next_steps(self, base: Path, adapter: Path, out: Path, prompt: str) -> list[str]:
        """Commands that use an adapter which was saved.

        Args:
          base: directory of the model under it.
          adapter: its own.
          out: of the run.
          prompt: flags of a prompt.
        """
        pair, precision = f"--model {base} --adapter {adapter}", self.settings.precision
        packed = "" if precision == "none" else f" --quantize {precision}"
        commands = [f"fmjax generate {pair}{packed} {prompt}"]
        if not self.settings.positions:
            into = f"{packed} --base-weights dequantized" if packed else ""
            commands.append(f"fmjax merge {pair}{into} --out {out / 'model'}")
        return commands

    def save(self, directory: Path, variables: Mapping[str, Any], base: Path) -> Path:
        """Writes what was trained: `adapter`, or else `model`.

        Args:
          directory: of the run.
          variables: trained.
          base: directory that the run started from.

        Returns:
          The directory written.
        """
        params = variables["params"]
        if self.spec is None:
            fmjax.save_pretrained(directory / "model", self.model, params, carry_from=base)
            return directory / "model"
        target = directory / "adapter"
        adapter = variables["adapter"]
        peft.save(target, self.spec, adapter, self.model, base=str(base), params=params)
        return target


def open_adapted(
    adaptation: Adaptation,
    directory: str | Path,
    hardware: Hardware,
    layout: Layout,
    seed: int,
    *,
    tokenizer: Tokenizer | None = None,
    override: Mapping[str, Any] | None = None,
) -> Adapted:
    """Reads a model and puts on it what the method trains.

    Args:
      adaptation: the method and its settings.
      directory: of the model.
      hardware: precision and rematerialisation.
      layout: devices, and what lies where.
      seed: of a new head and of the adapter.
      tokenizer: of the model, for a prompt that starts from text.
      override: the head of a task and its labels; None keeps the model's own. A task's head is
        trained whole beside the adapter.

    Raises:
      FmjaxError: what cannot be read, or a method that does not fit the model.
    """
    adaptation.check()
    full = adaptation.method == "full"
    dtype = compute_dtype(hardware.dtype)
    model, params = fmjax.from_pretrained(
        directory,
        dtype=dtype,
        # Frozen weights need no more precision than the computation; trained ones do.
        param_dtype="float32" if full else dtype,
        remat=hardware.remat,
        attention=hardware.attention,
        matmul=hardware.matmul,
        microbatches=hardware.microbatches,
        mesh=layout.mesh,
        rules=layout.rules,
        override=override,
        new_head=None if override is None else jax.random.key(seed),
        quantize=None if adaptation.precision == "none" else adaptation.precision,
    )
    variables = {"params": params}
    if full:
        return Adapted(model, variables, None, adaptation)
    task = override is not None
    heads = head_modules(model) if task and override["head"] else ()
    spec = adapter_spec(adaptation, model, heads, task, tokenizer)
    variables["adapter"] = peft.init(
        jax.random.key(seed + 2), spec, model, params, dtype=adaptation.trained_dtype(dtype)
    )
    return Adapted(model, variables, spec, adaptation)


def adapter_spec(
    adaptation: Adaptation,
    model: nn.Module,
    heads: tuple[str, ...] = (),
    task: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Any:
    """The spec of the method's adapter.

    Args:
      adaptation: the method and its settings.
      model: what it goes on.
      heads: modules that are trained whole.
      task: whether the head is a task's, which decides where low-rank matrices go by default.
      tokenizer: for a prompt that starts from text.

    Raises:
      ConfigError: a method without an adapter, or a prompt text without tokens.
    """
    a, tokens = adaptation, adaptation.virtual_tokens
    match a.method:
        case "lora" | "rslora" | "dora" | "qlora":
            return peft.LoRA(
                a.rank,
                a.alpha,
                _targets(a.targets, model, task),
                a.lora_dropout,
                use_rslora=a.method == "rslora",
                use_dora=a.method == "dora",
                bias=a.bias,
                modules_to_save=heads,
            )
        case "prefix":
            return peft.Prefix(tokens, projection=a.projection, modules_to_save=heads)
        case "prompt":
            return peft.Prompt(tokens, _ids(a.prompt_text, tokenizer), modules_to_save=heads)
        case "ptuning":
            return peft.PTuning(tokens, modules_to_save=heads)
        case "ia3":
            return peft.IA3(targets=a.targets or None, modules_to_save=heads)
    raise ConfigError(f"--method {a.method}: no such method")


def _ids(text: str, tokenizer: Tokenizer | None) -> tuple[int, ...] | None:
    if not text:
        return None
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise ConfigError(f"--prompt-text {text!r} has no tokens; give words")
    return ids


def _targets(named: tuple[str, ...], model: nn.Module, task: bool) -> tuple[str, ...] | str:
    if named:
        return named[0] if named == ("all-linear",) else named
    if not task:
        return "all-linear"
    kinds = Base.of(model).kinds()
    return tuple(kind for kind in kinds if kind in QUERY_VALUE) or "all-linear"


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that belong to the model's head, a pooler under it included."""
    pattern = get_family(model.config.model_type).head_tensors
    names = [name for weight in Base.of(model).weights for name in weight.names]
    found = [match.group() for name in names if (match := pattern.match(f"{name}."))]
    return tuple(dict.fromkeys(name.rstrip(".").rpartition(".")[2] for name in found))


def starting_weights(variables: Mapping[str, Any]) -> dict[str, str]:
    """What a run of all weights is known again by: those of the layers that it starts from.

    With an adapter the checkpoint knows the frozen weights itself. A new head is left out, since
    what is drawn by chance differs in its last bits from one kind of device to another.
    """
    if "adapter" in variables:
        return {}
    flat = tree.flatten(variables["params"])
    layers = {path: x for path, x in flat.items() if "layers" in path.split("/")[:-1]}
    return {"weights_at_the_start": fingerprint(layers)}
