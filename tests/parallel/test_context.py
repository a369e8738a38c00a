"""The sequence split over devices: the same losses and gradients as on one device."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from quick import QUICK

import fmjax
from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError, ShardingError
from fmjax.objectives import CausalLM, MaskedLM
from fmjax.parallel import DEFAULT_RULES, make_mesh, param_shardings, shard_batch
from fmjax.train import adamw, make_step

B, T = 4, 64

GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "n_positions": T, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip
LLAMA = {"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 11}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA2 = LLAMA | {"model_type": "gemma2", "head_dim": 8, "sliding_window": 9,
                  "query_pre_attn_scalar": 8}  # fmt: skip
FALCON = {"model_type": "falcon", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 4, "multi_query": True, "parallel_attn": True, "alibi": False,
          "new_decoder_architecture": False}  # fmt: skip
BERT = {"model_type": "bert", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": T,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


def plain(rng):
    return {"input_ids": rng.randint(5, 96, (B, T)).astype(np.int32)}


def padded(rng):
    """Padding on the right, on the left, and none."""
    mask = np.ones((B, T), np.int32)
    mask[0, 41:] = 0
    mask[1, :9] = 0
    mask[2, 3:] = 0
    return plain(rng) | {"attention_mask": mask}


def packed(rng):
    """Documents of many lengths, with positions that start again, and padding behind."""
    segments, positions = (np.zeros((B, T), np.int32) for _ in range(2))
    for row, lengths in enumerate([(20, 7, 30), (64,), (1, 62), (16, 16, 16, 15)]):
        ends = np.cumsum(lengths)
        for i, (end, n) in enumerate(zip(ends, lengths, strict=True)):
            segments[row, end - n : end] = i + 1
            positions[row, end - n : end] = np.arange(n)
    return plain(rng) | {"segment_ids": segments, "position_ids": positions}


BATCHES = {"plain": plain, "padded": padded, "packed": packed}


def batch_of(kind):
    return BATCHES[kind](np.random.RandomState(1))


def loss_and_gradients(model, variables, batch, mesh, objective, rng=None):
    def loss(variables, batch):
        with logical.use(mesh, DEFAULT_RULES):
            total, weight, *_ = objective.loss(model.apply, variables, {}, batch, rng)
        return total / weight

    batch = shard_batch(batch, mesh, DEFAULT_RULES)
    run = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    return jax.device_get(run(variables, batch))


@functools.lru_cache
def on_one_device(config, kind, objective, spec=None):
    """(variables, loss, gradients); with an adapter whose values are not zero."""
    model = fmjax.build(dict(config))
    variables = {"params": fmjax.init_params(model, jax.random.key(0))}
    if spec is not None:
        adapter = fmjax.peft.init(jax.random.key(1), spec, model, variables["params"])
        leaves, tree_ = jax.tree.flatten(jax.device_get(adapter))
        rng = np.random.RandomState(2)
        leaves = [(x + 0.3 * rng.randn(*x.shape)).astype(x.dtype) for x in leaves]
        variables["adapter"] = jax.tree.unflatten(tree_, leaves)
    return variables, *loss_and_gradients(model, variables, batch_of(kind), None, objective)


def mesh_of(**sizes):
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return make_mesh(**{"data": 1} | sizes, devices=devices)


def on_mesh(model, params, mesh):
    return jax.device_put(
        params, param_shardings(fmjax.abstract_params(model), mesh, DEFAULT_RULES)
    )


def agree(config, kind, objective=None, remat="none", spec=None, **sizes):
    objective, mesh = objective or CausalLM(), mesh_of(**sizes)
    variables, loss, grads = on_one_device(tuple(config.items()), kind, objective, spec)
    model = fmjax.build(config, remat=remat)
    variables = {**variables, "params": on_mesh(model, variables["params"], mesh)}
    found, found_grads = loss_and_gradients(model, variables, batch_of(kind), mesh, objective)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_close(found_grads, grads)


def assert_close(found, expected, rtol=1e-5):
    """Every gradient to 1e-5 of its own largest entry, or of a thousandth of the largest of all.

    (A gradient may be zero but for rounding: that by the bias of the keys.)
    """
    found, expected = tree.flatten(found), tree.flatten(expected)
    largest = max(np.max(np.abs(x)) for x in expected.values())
    for path, x in expected.items():
        scale = max(np.max(np.abs(x)), 1e-3 * largest)
        np.testing.assert_allclose(found[path], x, rtol=0, atol=rtol * scale, err_msg=path)


SIZES = [
    {"context": 2},
    {"context": 4},
    {"context": 8},
    {"context": 4, "data": 2},
    {"context": 2, "fsdp": 2, "tensor": 2},
]
# Every size with packed rows; each of two families with both kinds of rows.
DECODERS = [
    *((LLAMA, "packed", sizes) for sizes in SIZES),
    *((LLAMA, "padded", sizes) for sizes in SIZES[2:4]),
    (GPT2, "packed", SIZES[1]),
    *((GPT2, "padded", sizes) for sizes in (SIZES[0], SIZES[4])),
]


@pytest.mark.parametrize(
    ("config", "kind", "sizes"),
    DECODERS,
    ids=lambda x: x.get("model_type", str(x)) if isinstance(x, dict) else x,
)
def test_decoders(config, kind, sizes):
    agree(config, kind, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("config", [MISTRAL, GEMMA2, FALCON], ids=["mistral", "gemma2", "falcon"])
def test_windows_softcaps_and_a_single_key_head(config):
    agree(config, "packed", context=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_alibi(kind):
    agree(FALCON | {"alibi": True}, kind, context=4, data=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (LLAMA, fmjax.peft.LoRA(2)),
        (LLAMA, fmjax.peft.Prefix(3)),
        (MISTRAL, fmjax.peft.Prefix(3)),
        (MISTRAL, fmjax.peft.Prompt(16)),
    ],
    ids=["llama-lora", "llama-prefix", "mistral-prefix", "mistral-prompt"],
)
def test_adapters(config, spec):
    """Virtual tokens stand before every text, also where windows and packing count from it."""
    agree(config, "padded", spec=spec, context=4, data=2)


@pytest.mark.slow
def test_experts():
    objective = CausalLM(router_loss=0.1, router_metrics=True)
    agree(MIXTRAL, "padded", objective, context=2, expert=2, fsdp=2)


def test_stages():
    """A ring inside each stage of a pipeline."""
    agree(LLAMA, "packed", stage=2, context=2, data=2)


def test_encoders():
    agree(BERT | {"head": "masked-lm"}, "padded", MaskedLM(4, 96), context=4, data=2)


@pytest.mark.parametrize("remat", ["full", "attention"])
def test_recomputation(remat):
    agree(LLAMA, "packed", remat=remat, context=4, data=2)


@pytest.mark.slow
def test_training_is_that_of_one_device():
    """Packed rows, accumulation, mixed recomputation: the same losses for five steps."""

    def losses(mesh, **options):
        model = fmjax.build(LLAMA, remat="full")
        variables, *_ = on_one_device(tuple(LLAMA.items()), "packed", CausalLM())
        params = jax.tree.map(np.array, variables["params"])  # The step consumes what it is given.
        params = params if mesh is None else on_mesh(model, params, mesh)
        step = make_step(model, CausalLM(), adamw(1e-2), mesh=mesh, **options)
        state, found = step.init({"params": params}, jax.random.key(1)), []
        for seed in range(5):
            state, metrics = step(state, packed(np.random.RandomState(seed)))
            found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        evaluated = step.evaluate(state, batch_of("padded"))
        return found, float(evaluated["loss"][0])

    expected, evaluated = losses(None)
    for options in ({}, {"accumulate": 2}):
        found, found_evaluated = losses(mesh_of(context=4, data=2), **options)
        np.testing.assert_allclose(found, expected, rtol=2e-5)
        np.testing.assert_allclose(found_evaluated, evaluated, rtol=2e-5)
    assert expected[-1][0] < expected[0][0]


@pytest.mark.optimised
@pytest.mark.slow
def test_activation_memory_falls_with_the_context_axis():
    """Peak temporaries of a whole step of the loss, at 1, 2, 4 and 8 devices."""
    config = LLAMA | {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 8}
    ids = {"input_ids": np.zeros((1, 16384), np.int32)}
    bytes_ = []
    for n in (1, 2, 4, 8):
        mesh = mesh_of(context=n)
        model = fmjax.build(config)

        def loss(params, batch, model=model, mesh=mesh):
            with logical.use(mesh, DEFAULT_RULES):
                return CausalLM().loss(model.apply, {"params": params}, {}, batch, None)[0]

        shardings = param_shardings(fmjax.abstract_params(model), mesh, DEFAULT_RULES)
        params = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            fmjax.abstract_params(model), shardings,
        )  # fmt: skip
        batch = shard_batch(
            {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in ids.items()}, mesh, DEFAULT_RULES
        )
        compiled = jax.jit(jax.grad(loss)).lower(params, batch).compile()
        bytes_.append(compiled.memory_analysis().temp_size_in_bytes)
    # 562, 289, 147, 79 MB: a part that is divided, and a block of scores that is not.
    for one, half in itertools.pairwise(bytes_):
        assert half < 0.55 * one, bytes_


def test_batches_are_split_along_the_sequence():
    mesh = mesh_of(data=2, context=4)
    batch = packed(np.random.RandomState(0)) | {
        "labels": np.zeros((B, T), np.int32),
        "example_weight": np.ones(B, np.float32),
        "scores": np.zeros((B, 3), np.float32),
    }
    placed = shard_batch(batch, mesh, DEFAULT_RULES)
    both, rows = PartitionSpec("data", "context"), PartitionSpec("data")
    for name, x in placed.items():
        assert x.sharding.spec == (rows if name in ("example_weight", "scores") else both), name
        np.testing.assert_array_equal(x, batch[name])


def test_a_sequence_that_does_not_divide_names_the_axis():
    batch = {"input_ids": np.zeros((4, 30), np.int32)}
    with pytest.raises(ShardingError, match="input_ids: rows of 30 tokens.*context=4.*multiple"):
        shard_batch(batch, mesh_of(context=4), DEFAULT_RULES)


def run(config, variables=None, execution=None, **inputs):
    """The model's forward pass on context=4, traced only."""
    model = fmjax.build(config, **(execution or {}))
    variables = variables or {"params": fmjax.init_params(model, jax.random.key(0))}
    ids = np.zeros((B, T), np.int32)
    with logical.use(mesh_of(context=4), DEFAULT_RULES):
        return jax.eval_shape(lambda v: model.apply(v, input_ids=ids, **inputs), variables)


def test_dropout_of_probabilities_is_refused():
    config = GPT2 | {"attn_pdrop": 0.1}
    assert run(config).logits.shape == (B, T, 96)
    with pytest.raises(ConfigError, match="dropout 0.1 of the attention.*context=4.*a rate of 0"):
        run(config, rngs={"dropout": jax.random.key(0)})


def test_a_kernel_for_whole_sequences_is_refused():
    with pytest.raises(ConfigError, match="attention='xla' cannot be combined.*context=4.*'auto'"):
        run(GPT2, execution={"attention": "xla"})
