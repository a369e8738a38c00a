"""The steps that `fmjax plan` compiles: real ones, of abstract arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.core.logical import Rules
from fmjax.core.params import ParamSpec
from fmjax.models.config import ModelConfig
from fmjax.objectives import MaskedLM
from fmjax.plan import Plan, describe, parse, plan
from fmjax.plan.search import Tried, search
from fmjax.recipes.adaptation import Adapted, adapter_spec
from fmjax.recipes.measure import check_length
from fmjax.recipes.models import CAUSAL, architecture
from fmjax.recipes.objective import choose, is_masked
from fmjax.recipes.options import Masking, Optimization
from fmjax.recipes.plan_advice import advice
from fmjax.recipes.plan_apart import plan_apart
from fmjax.recipes.plan_cases import Case
from fmjax.recipes.plan_decode import plan_decoding
from fmjax.recipes.plan_layout import layout_of, name_of
from fmjax.recipes.plan_params import abstract_params
from fmjax.recipes.training import schedule
from fmjax.train import Step, make_step
from fmjax.train.flops import matmul_params, train_flops_per_token


def plan_case(case: Case, devices: list[Any] | None = None, codegen: bool = True) -> Plan:
    """Plans a training step; nothing is allocated and no chip is touched.

    Args:
      case: the step.
      devices: of its topology, where they have been described already.
      codegen: see `fmjax.plan.engine.plan_traced`, and `plan_apart` for what needs no such thought.

    Raises:
      FmjaxError: settings that cannot be used, or a compiler that is not installed.
    """
    topology = parse(case.topology)
    if case.batch < 1 or case.seq < 1:
        raise ConfigError(f"--batch {case.batch} and --seq {case.seq} must be at least 1")
    if not case.decode:
        case.adaptation.check()
    elif (case.matmul, case.microbatches, case.offload) != ("default", None, "none"):
        raise ConfigError(
            "--matmul, --microbatches and --offload are of training; leave out --decode or them"
        )
    config = config_of(case)
    devices = describe(topology) if devices is None else devices
    mesh, rules = layout_of(case, config, devices, topology.chip.hbm)
    if case.decode:
        result = plan_decoding(case, config, topology, mesh, rules, codegen)
        return result if result.fits else dataclasses.replace(result, advice=advice(case, result))
    step, variables, flops = build(case, config, mesh, rules)
    state = step.abstract_state(variables)
    result = plan(
        step,
        state,
        abstract_batch(case, config),
        topology=topology,
        model_flops=flops * case.batch * case.seq,
        settings=case.settings() | {"rules": case.rules or name_of(rules)},
        codegen=codegen,
    )
    result = dataclasses.replace(result, notes=(*result.notes, *beyond(case, config)))
    return result if result.fits else dataclasses.replace(result, advice=advice(case, result))


def search_cases(case: Case, report: Callable[[Tried], None]) -> list[Tried]:
    """Plans the case in other layouts, with other recomputation and batches; see `plan_search`.

    Args:
      case: to start from.
      report: is told of each as it is done.

    Raises:
      FmjaxError: settings that cannot be used in any layout.
    """
    from fmjax.recipes.plan_search import groups

    return search(groups(case, parse(case.topology)), plan_apart, report)


def config_of(case: Case) -> ModelConfig:
    """The architecture that `--model` names; rotary positions reach as far as the rows.

    Raises:
      ConfigError: an unknown name or field, a model that is no language model, or rows longer than
        its position table.
    """
    config = architecture(case.model, case.override)
    if not is_masked(config) and config.head not in CAUSAL:
        raise ConfigError(
            f"--model {case.model} has the head {config.head!r}; steps of language models are "
            "planned: give a decoder such as llama-7b, or an encoder such as bert-base"
        )
    needed = case.seq + case.adaptation.positions
    if hasattr(config, "rope") and config.max_position_embeddings < needed:
        config = config.replace(max_position_embeddings=needed)
    check_length(config, case.seq, case.adaptation.positions)
    return config


def beyond(case: Case, config: ModelConfig) -> tuple[str, ...]:
    """A note on rows that a run refuses unless it is told that positions reach as far."""
    own, reached = (
        getattr(c, "max_position_embeddings", None)
        for c in (architecture(case.model, case.override), config)
    )
    if own == reached:
        return ()
    return (
        f"rows of {case.seq} tokens are beyond the model's context of {own}; `fmjax train` takes "
        f"them with --override max_position_embeddings={reached}",
    )


def build(
    case: Case, config: ModelConfig, mesh: jax.sharding.Mesh, rules: Rules
) -> tuple[Step, dict[str, Any], float]:
    """(the step of a run, its variables as `ParamSpec`s, model FLOPs of a token)."""
    a = case.adaptation
    full = a.method == "full"
    model = fmjax.build(
        config,
        dtype="bfloat16",
        param_dtype="float32" if full else "bfloat16",
        remat=case.remat,
        attention=case.attention,
        matmul=case.matmul,
        microbatches=case.microbatches,
    )
    params = abstract_params(model, a.precision)
    variables, spec = {"params": params}, None
    if not full:
        spec = adapter_spec(a, model)
        variables["adapter"] = peft.abstract(spec, model, a.trained_dtype("bfloat16"))
    adapted = Adapted(model, variables, spec, a)
    optimization = case.optimization.completed(is_masked(config))
    rate = schedule(optimization)
    step = make_step(
        adapted.apply,
        objective_of(config, optimization),
        adapted.optimizer(
            rate,
            b2=optimization.beta2,
            eps=optimization.epsilon,
            weight_decay=optimization.weight_decay,
        ),
        mesh=mesh,
        rules=rules,
        trainable=adapted.trainable,
        accumulate=optimization.accumulate,
        clip_norm=optimization.clip_norm or None,
        learning_rate=rate,
        offload=None if case.offload == "none" else case.offload,
    )
    base = matmul_params(params, getattr(config, "expert_share", 1.0))
    flops = train_flops_per_token(
        base if full else tree.count([s.struct() for s in leaves(variables["adapter"])]),
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * config.head_dim,
        sequence_length=case.seq,
        causal=not is_masked(config),
        frozen=0 if full else base,
    )
    return step, variables, flops


def leaves(specs: Any) -> list[ParamSpec]:
    """The `ParamSpec`s of an abstract tree."""
    return jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, ParamSpec))


def objective_of(config: ModelConfig, optimization: Optimization) -> Any:
    """What pretraining minimises; which ids are special does not change what a step takes."""
    if is_masked(config):
        return MaskedLM(mask_token_id=0, vocab_size=config.vocab_size, special_ids=())
    return choose(config, None, Masking(), optimization)


def abstract_batch(case: Case, config: ModelConfig) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Shapes of what a step reads, [B, T] each."""
    names = ("input_ids", "position_ids", "segment_ids") if case.packed else ("input_ids",)
    return dict.fromkeys(names, jax.ShapeDtypeStruct((case.batch, case.seq), np.int32))
