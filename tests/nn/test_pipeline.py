"""Layers cut into stages give the losses and gradients of one device, in less memory for each."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import QUICK

import fmjax
from fmjax import peft, quantization
from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError, ShardingError
from fmjax.core.execution import Execution
from fmjax.nn.dropout import dropout
from fmjax.nn.stack import apply_layers
from fmjax.objectives import CausalLM, MaskedLM
from fmjax.parallel import DEFAULT_RULES, make_mesh
from fmjax.train import make_step

T, VOCAB = 12, 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.1,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 32,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = SIZES | {"model_type": "llama"}
CONFIGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "gemma2": SIZES
    | {"model_type": "gemma2", "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "mixtral": SIZES
    | {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "output_router_logits": True,
    },
    "falcon": {
        "model_type": "falcon",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "alibi": True,
        "initializer_range": 0.1,
    },
    "bert": {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    | {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
LORA = {
    "gpt2": peft.LoRA(rank=3, targets=("c_attn", "c_proj")),
    "llama": peft.LoRA(rank=3, targets=("q_proj", "v_proj", "down_proj")),
    "mixtral": peft.LoRA(rank=3, targets=("q_proj", "v_proj")),
}
OBJECTIVES = {
    "mixtral": CausalLM(router_loss=0.1),
    "bert": MaskedLM(mask_token_id=4, vocab_size=VOCAB, special_ids=(0, 1, 2, 3)),
}


@pytest.fixture(autouse=True)
def compile_quickly(monkeypatch) -> None:
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))


@functools.cache
def batch_of(rows, kind):
    """Packed documents of uneven lengths with padding at the end, or single padded ones."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, VOCAB, (rows, T)).astype(np.int32)
    if kind == "plain":
        return {"input_ids": ids}
    if kind == "padded":
        lengths = rng.integers(T // 2, T + 1, (rows, 1))
        return {"input_ids": ids, "attention_mask": (np.arange(T) < lengths).astype(np.int32)}
    first, second = rng.integers(2, 6, (rows, 1)), rng.integers(6, T, (rows, 1))
    at = np.broadcast_to(np.arange(T), (rows, T))
    segments = np.where(at < first, 1, np.where(at < second, 2, 0)).astype(np.int32)
    positions = np.where(at < first, at, at - first).astype(np.int32)
    return {"input_ids": ids, "segment_ids": segments, "position_ids": positions}


@functools.cache
def model_of(family, method):
    """The variables on one device, and what is known of them: shapes and logical axes."""
    model = fmjax.build(CONFIGS[family])
    params, abstract = fmjax.init_params(model, jax.random.key(0)), fmjax.abstract_params(model)
    if method == "full":
        return {"params": params}, {"params": abstract}
    spec = LORA[family]
    flat = tree.flatten(peft.init(jax.random.key(1), spec, model, params))
    for i, (path, leaf) in enumerate(flat.items()):
        if path.endswith("lora_b"):  # Zero at first, so that A would have no gradient.
            flat[path] = 0.1 * jax.random.normal(jax.random.key(i), leaf.shape)
    if method == "qlora":
        params = quantization.quantize(model, params, "nf4")
        abstract = quantization.abstract(model, "nf4")
    variables = {"params": params, "adapter": tree.unflatten(flat)}
    return variables, {"params": abstract, "adapter": peft.abstract(spec, model)}


def step_on(mesh, family, method="full", rules=DEFAULT_RULES, **execution):
    """A step and the state before it."""
    variables, abstract = model_of(family, method)
    model = fmjax.build(CONFIGS[family], **execution)
    objective = OBJECTIVES.get(family, CausalLM())
    step = make_step(
        model, objective, optax.sgd(1.0), mesh=mesh, rules=rules, abstract=abstract, clip_norm=None
    )
    return step, step.init(jax.tree.map(jnp.copy, variables), jax.random.key(2))


def gradients(mesh, family, method, kind, **execution):
    """Sum of the losses over 16 rows, and {path: gradient} of what is trained."""
    step, state = step_on(mesh, family, method, **execution)
    trained, frozen = step.split(state.variables)

    @jax.jit
    def run(trained, frozen, batch):
        def loss(trained):
            variables = tree.combine(trained, frozen)
            return step.objective.loss(step.apply, variables, {}, batch, None)[0]

        with logical.use(mesh, step.rules):
            return jax.value_and_grad(loss)(trained)

    loss, grads = jax.device_get(run(trained, frozen, step.place(batch_of(16, kind))))
    return loss, tree.flatten(grads)


alone = functools.cache(functools.partial(gradients, None))


CASES = {
    "gpt2": ("gpt2", "full", "plain", {"stage": 2, "data": 2, "fsdp": 2}, {}),
    "gpt2-lora": ("gpt2", "lora", "padded", {"stage": 4, "tensor": 2}, {"microbatches": 8}),
    "llama": ("llama", "full", "packed", {"stage": 4, "data": 2}, {"remat": "dots"}),
    "llama-fsdp-tensor": (
        "llama", "full", "packed", {"stage": 2, "fsdp": 2, "tensor": 2},
        {"remat": "full", "microbatches": 4},
    ),
    "llama-lora": (
        "llama", "lora", "packed", {"stage": 2, "data": 2, "tensor": 2}, {"remat": "attention"}
    ),
    "llama-context": (
        "llama", "full", "packed", {"stage": 2, "context": 2, "fsdp": 2}, {"remat": "attention"}
    ),
    "llama-qlora": ("llama", "qlora", "packed", {"stage": 2, "fsdp": 2}, {"remat": "full"}),
    "gemma2": ("gemma2", "full", "packed", {"stage": 2, "tensor": 2}, {}),
    "falcon": ("falcon", "full", "padded", {"stage": 4}, {}),
    "bert": ("bert", "full", "padded", {"stage": 2, "fsdp": 2}, {}),
    "mixtral": ("mixtral", "full", "packed", {"stage": 2, "expert": 2, "tensor": 2}, {}),
    "mixtral-lora": ("mixtral", "lora", "padded", {"stage": 4, "fsdp": 2}, {"remat": "full"}),
}  # fmt: skip


def on_some(data=1, **sizes):
    """A mesh of as many of the eight devices as it takes."""
    count = data * int(np.prod(list(sizes.values())))
    return make_mesh(data, **sizes, devices=jax.devices()[:count])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_stages_give_the_loss_and_gradients_of_one_device(name):
    *case, sizes, execution = CASES[name]
    loss, grads = alone(*case)
    staged_loss, staged = gradients(on_some(**sizes), *case, **execution)
    assert loss > 1 and staged.keys() == grads.keys()
    np.testing.assert_allclose(staged_loss, loss, rtol=1e-5)
    # Biases of keys have no gradient but rounding errors.
    smallest = 1e-3 * np.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
    for path, grad in grads.items():
        assert np.abs(grad).max() > 0, path
        distance = np.linalg.norm(staged[path] - grad) / max(np.linalg.norm(grad), smallest)
        assert distance < 1e-5, f"{path}: {distance}"


def test_layers_lie_on_their_stage_and_rows_are_handed_on_by_permutes():
    arguments, layers = {}, 0
    for stage in (1, 2, 4):
        step, state = step_on(on_some(stage=stage), "llama", remat="full")
        compiled = step.lower(state, batch_of(16, "packed")).compile()
        arguments[stage] = compiled.memory_analysis().argument_size_in_bytes
        layers = tree.nbytes(state.variables["params"]["layers"])
        permutes = set(re.findall(r"= (\S+) collective-permute\(", compiled.as_text()))
        # Hidden states of one microbatch, forwards and backwards: [1 stage, rows, T, D].
        assert (f"f32[1,{16 // stage},{T},32]" in {p.split("{")[0] for p in permutes}) == (
            stage > 1
        )
        up = state.variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
        assert up.addressable_shards[0].data.shape == (4 // stage, 32, 64)
    batch = sum(x.nbytes for x in batch_of(16, "packed").values())
    for stage in (2, 4):
        saved = (layers + batch) * (1 - 1 / stage)
        assert arguments[1] - arguments[stage] == pytest.approx(saved, rel=1e-3)


def test_every_layers_output_is_collected():
    mesh = on_some(stage=2, fsdp=2)
    outputs = []
    for m in (None, mesh):
        step, state = step_on(m, "gemma2", microbatches=4)

        @jax.jit
        def run(variables, batch, m=m, step=step):
            with logical.use(m, step.rules):
                return step.apply(variables, **batch, output_hidden_states=True).hidden_states

        outputs.append(run(state.variables, step.place(batch_of(16, "packed"))))
    assert len(outputs[0]) == len(outputs[1]) == 5
    for one, staged in zip(*outputs, strict=True):
        np.testing.assert_allclose(staged, one, atol=1e-5)


class Layer(nn.Module):
    """Adds zeros and twos to x [B, D]."""

    @nn.compact
    def __call__(self, x, context, own):
        return x + dropout(self, jnp.ones_like(x), 0.5)


class Stack(nn.Module):
    """`layers` of them."""

    layers: int = 4
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x, context=None):
        return apply_layers(
            lambda name: Layer(name=name), self.layers, x, context,
            execution=self.execution, collect=True,
        )[1]  # fmt: skip


def test_dropout_differs_from_layer_to_layer_and_row_to_row():
    x = jnp.zeros((8, 64))

    def run(key):
        with logical.use(on_some(stage=2), DEFAULT_RULES):
            return Stack(execution=Execution(microbatches=4)).apply({}, x, rngs={"dropout": key})

    outputs = jax.jit(run)(jax.random.key(0))
    added = np.diff(np.stack([x, *outputs]), axis=0)
    assert set(np.unique(added)) == {0, 2} and abs(added.mean() - 1) < 0.1
    assert len({row.tobytes() for row in added.reshape(-1, 64)}) == 4 * 8
    again = jax.jit(run)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, outputs)


@pytest.mark.parametrize(
    "layers, rows, microbatches, message",
    [
        (3, 8, None, "3 layers do not divide over stage=2; .*'layers', None"),
        (4, 8, 3, "microbatches=3 is not a multiple of stage=2; use 2 or 4"),
        (4, 6, None, r"6 rows does not divide over microbatches=2 × data=2 .*stage=2.*; .* of 4"),
    ],
)
def test_what_does_not_divide_names_the_axis(layers, rows, microbatches, message):
    model = Stack(layers, Execution(microbatches=microbatches))
    with (
        logical.use(on_some(2, stage=2), DEFAULT_RULES),
        pytest.raises(ShardingError, match=message),
    ):
        model.apply({}, jnp.zeros((rows, 4)))


def test_what_stages_cannot_do_is_refused():
    mesh = on_some(stage=2)
    with logical.use(mesh, DEFAULT_RULES):
        with pytest.raises(
            ConfigError, match=r"an array \(5, 3\) .* its first axis must be 4 or 1"
        ):
            Stack().apply({}, jnp.zeros((4, 8)), jnp.zeros((5, 3)))
        with pytest.raises(ConfigError, match="'layers' is cut into stages.*decode on a mesh"):
            Stack().apply({}, jnp.zeros((4, 8)), mutable=["cache"])
        with pytest.raises(ConfigError, match="'layers' is cut into stages.*a bank of adapters"):
            bank = {"layers": {"proj": {"rows": jnp.zeros((4, 4), jnp.int32)}}}
            Stack().apply({"adapter": bank}, jnp.zeros((4, 8)))
    split = (("layers", ("stage", "fsdp")), *DEFAULT_RULES)
    with (
        logical.use(on_some(stage=2, fsdp=2), split),
        pytest.raises(ShardingError, match="split over stage and fsdp.*use the rule"),
    ):
        Stack().apply({}, jnp.zeros((4, 8)))
    with pytest.raises(ConfigError, match="microbatches is 0"):
        Execution(microbatches=0)
    with pytest.raises(ShardingError, match="axis 'layers' of size 3 .* over stage=2"):
        model = fmjax.build(LLAMA | {"num_hidden_layers": 3})
        fmjax.init_params(model, jax.random.key(0), mesh=mesh)


def test_a_rule_keeps_the_layers_together():
    rules = (("layers", None), *DEFAULT_RULES)
    step, state = step_on(on_some(stage=2), "llama", rules=rules)
    text = step.lower(state, batch_of(16, "plain")).compile().as_text()
    assert "collective-permute" not in text
    losses = [float(step(state, batch_of(16, "plain"))[1]["loss"])]
    step, state = step_on(None, "llama")
    losses.append(float(step(state, batch_of(16, "plain"))[1]["loss"]))
    np.testing.assert_allclose(*losses, rtol=1e-6)
