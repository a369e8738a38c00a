"""The step of decoding that `fmjax plan --decode` compiles: a token for every row."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

import fmjax
from fmjax import peft
from fmjax.core import logical
from fmjax.core.logical import Rules
from fmjax.models.config import ModelConfig
from fmjax.nn.attention import squeeze_cache
from fmjax.plan import Plan, Topology, plan_traced
from fmjax.recipes.adaptation import adapter_spec
from fmjax.recipes.plan_params import abstract_params
from fmjax.train.flops import matmul_params
from fmjax.train.placement import structs, variable_shardings


def plan_decoding(
    case: Any,
    config: ModelConfig,
    topology: Topology,
    mesh: Mesh,
    rules: Rules,
    codegen: bool = True,
) -> Plan:
    """Plans one token of each of B rows, whose caches of T slots are full but for it.

    Weights are in bfloat16, one array a layer, as `fmjax.generate` lays them out, or in few bits.

    Args:
      case: model, batch B, seq T, and an adapter if its method has one.
      config: of the model.
      topology: what the mesh is of.
      mesh: devices.
      rules: logical axes → mesh axes.
      codegen: see `fmjax.plan.engine.plan_traced`.
    """
    a = case.adaptation
    model = fmjax.build(
        config,
        dtype="bfloat16",
        param_dtype="bfloat16",
        scan_layers=False,
        attention=case.attention,
    )
    specs = {"params": abstract_params(model, a.precision)}
    if a.method != "full":
        specs["adapter"] = peft.abstract(adapter_spec(a, model), model, "bfloat16")
    variables = structs(specs, variable_shardings(specs, mesh, rules, None))
    batch, slots = case.batch, case.seq

    def laid_out(axes: tuple[str | None, ...], shape: tuple[int, ...], dtype: Any) -> Any:
        spec = logical.spec(axes, rules, mesh, shape, name="--batch")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    valid = laid_out(("batch", None), (batch, slots), jnp.int32)
    token = laid_out(("batch", None), (batch, 1), jnp.int32)

    def fill(variables: Any, ids: Any, valid: Any) -> Any:
        inputs = {"input_ids": ids, "attention_mask": valid, "cache_index": 0}
        return model.apply(variables, **inputs, mutable=["cache"])[1]["cache"]

    def step(cache: Any, variables: Any, ids: Any, valid: Any, position: Any) -> Any:
        with logical.use(mesh, rules):
            output, updated = model.apply(
                {**variables, "cache": cache},
                input_ids=ids,
                attention_mask=valid,
                position_ids=position,
                cache_index=position[0, 0],
                mutable=["cache"],
            )
        tokens = jnp.argmax(output.logits[:, -1], -1)
        return squeeze_cache(updated["cache"]), tokens

    whole = jax.eval_shape(fill, variables, token, valid)
    cache = jax.tree.map(
        lambda x, y: _cache(x, y, mesh, rules), whole, jax.eval_shape(squeeze_cache, whole)
    )
    shardings = jax.tree.map(lambda x: x.sharding, cache)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    attention = 4 * config.num_hidden_layers * slots
    attention *= config.num_attention_heads * config.head_dim
    params = matmul_params(specs["params"], getattr(config, "expert_share", 1.0))
    return plan_traced(
        lambda: jitted.trace(cache, variables, token, valid, token),
        topology=topology,
        mesh=mesh,
        weights=variables,
        activations=cache,
        tokens=batch,
        model_flops=(2 * params + attention) * batch,
        settings=case.settings(),
        codegen=codegen,
    )


def _cache(whole: Any, squeezed: Any, mesh: Mesh, rules: Rules) -> jax.ShapeDtypeStruct:
    """[B, G, S, K], rows and heads split as far as they divide, without axes of size 1."""
    axes = ("batch", "act_kv_heads", None, None)
    kept = []
    for axis, size in zip(axes[:2], whole.shape[:2], strict=True):
        parts = logical.spec((axis,), rules, mesh)[0] if size > 1 else None
        names = logical.mesh_axes(parts)
        divides = size % math.prod(mesh.shape[name] for name in names) == 0
        if size > 1:
            kept.append(axis if divides else None)
    spec = logical.spec((*kept, None, None), rules, mesh, squeezed.shape, name="cache")
    return jax.ShapeDtypeStruct(squeezed.shape, squeezed.dtype, sharding=NamedSharding(mesh, spec))
