"""Every rule list, and each pair of mesh axes that makes sense, against one device.

One program gives the gradients of all weights and of an adapter together, through the training step
itself: the momentum of a first step is the mean gradient, and lies where an optimizer's state lies.
"""

import functools

import jax
import numpy as np
import optax
import pytest
from quick import QUICK

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.objectives import CausalLM
from fmjax.parallel import RULES, make_mesh, unused_axes
from fmjax.train import make_step

# 61 words divide over no axis, two key–value heads not over four devices.
GPT2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT2 |= {"n_positions": 8, "bos_token_id": 1, "eos_token_id": 2}
GPT2 |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
LLAMA = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
LLAMA |= {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
# Three key–value heads, each repeated for the two of a tensor axis; six heads over four devices.
UNEVEN = LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "mixtral": MIXTRAL, "uneven": UNEVEN}

LAYOUTS = (
    ("ddp", {"data": 8}),
    ("zero1", {"data": 2, "fsdp": 4}),
    ("fsdp", {"fsdp": 8}),
    ("fsdp", {"data": 2, "fsdp": 4}),
    ("fsdp", {"fsdp": 4, "context": 2}),
    ("tensor", {"data": 2, "tensor": 4}),
    ("fsdp_tensor", {"fsdp": 2, "tensor": 4}),
    ("fsdp_tensor", {"context": 2, "tensor": 4}),
    ("fsdp_tensor", {"data": 2, "context": 4}),
    ("sequence", {"fsdp": 2, "tensor": 4}),
    ("sequence", {"context": 2, "tensor": 2, "data": 2}),
)
EXPERTS = (
    ("fsdp", {"expert": 4, "fsdp": 2}),
    ("expert", {"expert": 2, "fsdp": 4}),
    ("expert", {"expert": 4, "data": 2}),
    ("expert", {"expert": 2, "tensor": 4}),
    ("expert", {"expert": 2, "context": 2, "tensor": 2}),
)
STAGES = (
    ("fsdp", {"stage": 2, "fsdp": 4}),
    ("fsdp_tensor", {"stage": 2, "data": 2, "tensor": 2}),
)
CASES = [
    *(("llama", *layout) for layout in LAYOUTS),
    *(("gpt2", *LAYOUTS[i]) for i in (0, 1, 3, 5, 7, 9)),
    *(("mixtral", *layout) for layout in (*EXPERTS, *LAYOUTS[::2])),
    *(("llama", *layout) for layout in STAGES),
    *((name, *STAGES[0]) for name in ("gpt2", "mixtral")),
    ("uneven", "fsdp_tensor", {"fsdp": 4, "tensor": 2}),
    ("uneven", "sequence", {"fsdp": 2, "tensor": 4}),
]
# The adapter alone, as fine-tuning computes it: the base takes no gradient.
LORA = [
    *(("llama", *layout) for layout in (LAYOUTS[0], LAYOUTS[2], LAYOUTS[6], LAYOUTS[9])),
    *(("mixtral", *layout) for layout in (EXPERTS[1],)),
    *(("gpt2", *layout) for layout in (LAYOUTS[7],)),
]


def label(case: tuple) -> str:
    name, rules, sizes = case
    return "-".join((name, rules, *(f"{axis}{n}" for axis, n in sizes.items())))


@pytest.fixture(autouse=True)
def compile_quickly(monkeypatch) -> None:
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))


@functools.cache
def model_of(name: str):
    """Module, abstract variables and their values."""
    model = fmjax.build(CONFIGS[name])
    spec = peft.LoRA(rank=2, targets="all-linear")
    abstract = {"params": fmjax.abstract_params(model), "adapter": peft.abstract(spec, model)}
    rng = np.random.default_rng(0)

    def draw(path: str, leaf) -> np.ndarray:
        if path.endswith("lora_scale"):
            return np.full(leaf.shape, 2.0, np.float32)
        return rng.normal(path.endswith("scale"), 0.1, leaf.shape).astype(np.float32)

    values = tree.map_with_path(draw, abstract)
    batch = {"input_ids": rng.integers(3, 61, (8, 8)).astype(np.int32)}
    return model, abstract, values, batch


def gradients(name: str, trainable: str, mesh=None, rules=None):
    """(loss, state after a step whose momentum is the gradient)."""
    model, abstract, values, batch = model_of(name)
    objective = CausalLM(router_loss=0.02) if name == "mixtral" else CausalLM()
    step = make_step(
        model,
        objective,
        optax.trace(0.0),
        mesh=mesh,
        rules=rules,
        abstract=abstract,
        trainable=[(".*lora_scale", False), (trainable, True), (".*", False)],
        clip_norm=None,
    )
    state = step.init(values, jax.random.key(0))
    state, metrics = step(state, batch)
    return float(metrics["loss"]), state


@functools.cache
def alone(name: str, trainable: str):
    loss, state = gradients(name, trainable)
    return loss, jax.device_get(state.opt_state.trace)


def check(name: str, rules: str, sizes: dict, trainable: str):
    mesh = make_mesh(**{"data": 1, **sizes})
    assert not unused_axes(mesh, RULES[rules])
    want_loss, want = alone(name, trainable)
    loss, state = gradients(name, trainable, mesh, RULES[rules])
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    got = tree.flatten(state.opt_state.trace)
    for path, gradient in tree.flatten(want).items():
        assert np.abs(gradient).max() > 0, path
        bound = 1e-4 * np.abs(gradient).max()
        np.testing.assert_allclose(got[path], gradient, rtol=0, atol=bound, err_msg=path)
    return state


@pytest.mark.parametrize("case", CASES, ids=label)
def test_weights_and_adapters_have_the_gradients_of_one_device(case) -> None:
    state = check(*case, ".*")
    _, rules, sizes = case

    def share(params) -> float:
        """Of one device."""
        leaves = jax.tree.leaves(params)
        return sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves)

    weights, moments = share(state.variables["params"]), share(state.opt_state.trace["params"])
    assert (weights == 1) == (rules in ("ddp", "zero1") or sizes.keys() <= {"data", "context"})
    assert moments < 1 / 7 if rules == "zero1" else moments == weights


@pytest.mark.parametrize("case", LORA, ids=label)
def test_adapters_on_frozen_weights_have_the_gradients_of_one_device(case) -> None:
    check(*case, "adapter/.*")
