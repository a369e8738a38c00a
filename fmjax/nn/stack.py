"""The layer stack: one compiled body over all layers, with a choice of what to recompute."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fmjax.core.errors import ConfigError
from fmjax.core.execution import Execution
from fmjax.nn import pipeline
from fmjax.nn.layouts import row_major

_POLICIES = jax.checkpoint_policies
INPUT = "layer_input"

_names = _POLICIES.save_only_these_names

# What the backward pass finds saved; the rest of a layer it computes again. Per token of a layer,
# in values of the hidden size D (LLaMA, whose MLP is 2.7 D wide):
REMAT: dict[str, Callable[..., bool] | None] = {
    # All: fastest where memory allows.
    "none": None,
    # Results of the weight matmuls and of attention: 13 D with the layer's input.
    "dots": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable, _names("attention")
    ),
    # All but the output projection and what is elementwise: 10 D.
    "minimal": _names("qkv", "attention", "mlp_gate", "mlp_up"),
    # Attention is not computed again, the MLP is: 5 D.
    "attention": _names("qkv", "attention"),
    # Queries, keys, values, as attention takes them: 4 D.
    "qkv": _names("qkv"),
    # Only the layers' inputs: D.
    "full": _POLICIES.nothing_saveable,
    # The layers' inputs too leave the accelerator, for the host's memory: 0.
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def apply_layers(
    make_layer: Callable[[str], nn.Module],
    num_layers: int,
    x: Any,
    context: Any = None,
    per_layer: Any = None,
    *,
    name: str = "layers",
    execution: Execution,
    collect: bool = False,
) -> tuple[Any, tuple[Any, ...]]:
    """Applies `num_layers` layers in turn; call it inside a compact `__call__`.

    Every collection of a layer (params, adapter, cache) is stacked on a leading `layers` axis when
    scanned. A collection may cover only some of a layer's modules. On a mesh whose rules lay the
    layers out over `stage`, they are applied stage by stage, see `fmjax.nn.pipeline`.

    Args:
      make_layer: given a name, makes a layer whose `__call__(x, context, per_layer)` returns x.
      num_layers: L.
      x: the input of the first layer: an array, or a pytree that keeps its structure.
      context: what all layers share (masks, position tables): any pytree.
      per_layer: what differs: a pytree whose leaves have a leading axis of L.
      name: of the stacked subtree; without scanning the subtrees are "{name}_{i}".
      execution: scanning and rematerialisation.
      collect: also return every layer's output.

    Returns:
      (the last layer's output, all L outputs if `collect`).

    Raises:
      ConfigError: an unknown remat policy, or what stages cannot do.
      ShardingError: layers or rows that do not divide over the stages.
    """
    if execution.remat not in REMAT:
        raise ConfigError(f"remat {execution.remat!r} is unknown; choose one of {', '.join(REMAT)}")

    def body(layer: nn.Module, x: Any, own: Any, context: Any) -> tuple[Any, Any]:
        x = jax.tree.map(lambda a: checkpoint_name(a, INPUT), row_major(x))
        x = layer(x, context, own)
        return x, (x if collect else None)

    if execution.remat != "none":
        # Inside a scan XLA cannot merge the recomputation with the forward pass; in a plain loop
        # it can, and must be kept from it.
        body = nn.remat(body, policy=REMAT[execution.remat], prevent_cse=not execution.scan_layers)
    if not execution.scan_layers:
        outputs = []
        for i in range(num_layers):
            own = jax.tree.map(lambda a, i=i: a[i], per_layer)
            x, _ = body(make_layer(f"{name}_{i}"), x, own, context)
            outputs.append(x)
        return x, tuple(outputs) if collect else ()
    layer = make_layer(name)
    if pipeline.stages() > 1 and not layer.is_initializing():
        x, outputs = pipeline.apply_stages(
            body, layer, num_layers, x, context, per_layer, execution.microbatches
        )
    else:
        scanned = nn.scan(
            body,
            variable_axes={"params": 0, "adapter": 0, "cache": 0},
            split_rngs={"params": True, "dropout": True},
            length=num_layers,
            in_axes=(0, nn.broadcast),
        )
        x, outputs = scanned(layer, x, per_layer, context)
    if not collect:
        return x, ()
    return x, tuple(jax.tree.map(lambda a, i=i: a[i], outputs) for i in range(num_layers))


def unstack(collection: dict[str, Any], name: str, num_layers: int) -> dict[str, Any]:
    """The same parameters (or adapter, or cache) with one subtree a layer: "{name}_0", …"""
    if name not in collection:
        return collection
    rest = {k: v for k, v in collection.items() if k != name}
    layers = {
        f"{name}_{i}": jax.tree.map(lambda a, i=i: a[i], collection[name])
        for i in range(num_layers)
    }
    return rest | layers


def restack(collection: dict[str, Any], name: str, num_layers: int) -> dict[str, Any]:
    """The inverse of `unstack`."""
    if f"{name}_0" not in collection:
        return collection
    layers = [collection[f"{name}_{i}"] for i in range(num_layers)]
    rest = {k: v for k, v in collection.items() if not k.startswith(f"{name}_")}
    return rest | {name: jax.tree.map(lambda *a: jnp.stack(a), *layers)}
