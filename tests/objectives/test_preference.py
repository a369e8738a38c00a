"""DPO: values and gradients against a plain torch implementation over transformers and peft."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft as hf_peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from task_cases import given

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError, DataError
from fmjax.models.llama.config import LlamaConfig
from fmjax.objectives import DPO, log_probabilities
from fmjax.train import make_step

VOCAB, T = 50, 10


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A tiny llama with a LoRA that does something, there and here."""
    room = tmp_path_factory.mktemp("dpo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(room / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(room / "base", attn_implementation="eager")
    lora = hf_peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, by peft's own code
        theirs = hf_peft.get_peft_model(base, lora).eval()
    theirs.save_pretrained(room / "adapter")
    model, params = fmjax.from_pretrained(room / "base")
    spec, adapter = peft.load(room / "adapter", model, params)
    return theirs, model, {"params": params, "adapter": adapter}, spec


def batch(B=4, seed=0):
    """Pairs that share a prompt of 2 to 4 tokens; answers end before or at T."""
    rng = np.random.default_rng(seed)
    out = {}
    prompts = rng.integers(2, 5, B)
    for side in ("chosen", "rejected"):
        ids = rng.integers(1, VOCAB, (B, T)).astype(np.int32)
        lengths = rng.integers(6, T + 1, B)
        places = np.arange(T)
        mask = (places < lengths[:, None]).astype(np.int32)
        ids[:, :2] = 3
        out[f"{side}_input_ids"] = np.where(mask, ids, 0)
        out[f"{side}_attention_mask"] = mask
        answer = (mask > 0) & (places >= prompts[:, None])
        out[f"{side}_labels"] = np.where(answer, ids, -100).astype(np.int32)
    return out


def torch_logps(model, data, side):
    """Sums over the answers' tokens, and their numbers."""
    ids, mask, labels = (
        torch.tensor(data[f"{side}_{name}"]).long()
        for name in ("input_ids", "attention_mask", "labels")
    )
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    labels = labels[:, 1:]
    counted = labels != -100
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (logps * counted).sum(-1), counted.sum(-1)


def torch_dpo(model, data, beta, smoothing, kind):
    policy = [torch_logps(model, data, side) for side in ("chosen", "rejected")]
    with torch.no_grad(), model.disable_adapter():
        reference = [torch_logps(model, data, side) for side in ("chosen", "rejected")]
    (pc, pr), (rc, rr) = (
        [s / n if kind == "ipo" else s for s, n in pair] for pair in (policy, reference)
    )
    logits = (pc - pr) - (rc - rr)
    losses = {
        "sigmoid": -F.logsigmoid(beta * logits) * (1 - smoothing)
        - F.logsigmoid(-beta * logits) * smoothing,
        "hinge": torch.relu(1 - beta * logits),
        "ipo": (logits - 1 / (2 * beta)) ** 2,
    }[kind]
    figures = {
        "loss": losses,
        "accuracy": (logits > 0).float(),
        "margin": beta * logits,
        "chosen_reward": beta * (pc - rc),
        "rejected_reward": beta * (pr - rr),
        "chosen_logps": pc,
        "rejected_logps": pr,
    }
    return losses.mean(), {k: x.detach().mean().item() for k, x in figures.items()}


def mean_loss(objective, model, variables, data):
    """Value, metrics, and the gradient by the adapter."""

    def loss(adapter):
        total, weight, metrics, _ = objective.loss(
            model.apply, {**variables, "adapter": adapter}, {}, data, None
        )
        return total / weight, {name: s / w for name, (s, w) in metrics.items()}

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["adapter"])
    return value, metrics, grads


@pytest.mark.parametrize(
    ("kind", "beta", "smoothing"),
    [("sigmoid", 0.1, 0.0), ("sigmoid", 0.5, 0.2), ("hinge", 0.2, 0.0), ("ipo", 0.3, 0.0)],
)
def test_value_and_gradient_are_torchs(twin, kind, beta, smoothing, tmp_path):
    theirs, model, variables, spec = twin
    data = batch()
    theirs.zero_grad()
    expected, figures = torch_dpo(theirs, data, beta, smoothing, kind)
    expected.backward()
    value, metrics, grads = mean_loss(DPO(beta, smoothing, kind), model, variables, data)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
    assert metrics.keys() == figures.keys()
    for name, figure in figures.items():
        np.testing.assert_allclose(metrics[name], figure, rtol=1e-4, atol=1e-5, err_msg=name)
    compared = 0
    for name, p in theirs.named_parameters():
        if p.grad is None:
            continue
        parts = name.split(".")
        layer, where, leaf = int(parts[4]), "/".join(parts[5:7]), parts[7].lower()
        ours = tree.flatten(grads)[f"layers/{where}/{leaf}"][layer]
        np.testing.assert_allclose(ours, p.grad.numpy().T, rtol=1e-3, atol=2e-5, err_msg=name)
        assert p.grad.abs().max() > 1e-4
        compared += 1
    assert compared == 8


def test_reference_log_probabilities_may_come_with_the_batch(twin):
    _, model, variables, _ = twin
    data = batch()
    bare = {"params": variables["params"]}
    pair = log_probabilities(model.apply, bare, data)
    known = data | {"reference_chosen_logps": pair.chosen, "reference_rejected_logps": pair[1]}
    for kind in ("sigmoid", "ipo"):
        objective = DPO(loss_type=kind)
        with_adapter = mean_loss(objective, model, variables, data)[0]
        np.testing.assert_allclose(
            mean_loss(objective, model, variables, known)[0], with_adapter, rtol=1e-5
        )
    # Also with no adapter: all of the model is trained, and starts at the reference.
    total, weight, metrics, _ = DPO().loss(model.apply, bare, {}, known, None)
    np.testing.assert_allclose(total / weight, np.log(2), rtol=1e-5)
    assert abs(float(metrics["margin"][0])) < 1e-4


def test_the_adapter_off_is_the_reference_and_a_new_adapter_gives_log_2(twin):
    _, model, variables, spec = twin
    fresh = peft.init(jax.random.key(0), spec, model, variables["params"])
    value, metrics, _ = mean_loss(DPO(), model, {**variables, "adapter": fresh}, batch())
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert metrics["accuracy"] == metrics["margin"] == 0


def test_rows_that_fill_the_batch_do_not_count(twin):
    _, model, variables, _ = twin
    data = batch()
    three = {k: v[:3] for k, v in data.items()}
    weighted = data | {"example_weight": np.array([1, 1, 1, 0], np.float32)}
    value, metrics, _ = mean_loss(DPO(), model, variables, weighted)
    other, expected, _ = mean_loss(DPO(), model, variables, three)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    np.testing.assert_allclose(metrics["margin"], expected["margin"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_accumulation_and_a_mesh_give_the_same_update(twin):
    _, model, variables, _ = twin
    data = batch(8)
    results = []
    for options in {}, {"accumulate": 4}, {"mesh": fmjax.make_mesh(data=8)}:
        step = make_step(model, DPO(), optax.sgd(0.1), clip_norm=None, **options)
        start = jax.tree.map(jnp.array, variables)
        state, metrics = step(step.init(start, jax.random.key(0)), data)
        results.append(jax.device_get((state.variables["adapter"], metrics)))
        assert metrics["weight"] == 8
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[0], other)


@pytest.mark.optimised
def test_the_step_holds_no_second_copy_of_the_base():
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        vocab_size=VOCAB,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = fmjax.build(config, remat="full")
    params = fmjax.abstract_params(model)
    spec = peft.LoRA(2, 4)
    variables = {"params": params, "adapter": peft.abstract(spec, model)}
    step = make_step(model, DPO(), optax.adam(1e-3))
    one = {k: v[:1] for k, v in batch().items()}
    compiled = step.lower(step.abstract_state(variables), one).compile()
    memory = compiled.memory_analysis()
    base = tree.nbytes(params)
    assert base > 4e6
    assert memory.argument_size_in_bytes < 1.1 * base
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 0.5 * base


def test_what_does_not_fit_is_named(twin):
    _, model, variables, _ = twin
    bare = {"params": variables["params"]}
    data = batch()
    with pytest.raises(ConfigError, match="no adapter.*train an adapter.*reference_chosen_logps"):
        DPO().loss(model.apply, bare, {}, data, None)
    with pytest.raises(DataError, match="the batch has no rejected_labels"):
        DPO().loss(model.apply, variables, {}, {k: v for k, v in data.items()
                                                if k != "rejected_labels"}, None)  # fmt: skip
    with pytest.raises(DataError, match="rejected_input_ids is int32 of shape .4, 8.*padded"):
        short = data | {"rejected_input_ids": data["rejected_input_ids"][:, :8]}
        DPO().loss(model.apply, variables, {}, short, None)
    with pytest.raises(DataError, match="no reference_rejected_logps"):
        half = data | {"reference_chosen_logps": np.zeros(4, np.float32)}
        DPO().loss(model.apply, variables, {}, half, None)
    with pytest.raises(ConfigError, match="needs the head 'causal-lm'"):
        DPO().loss(given(), variables, {}, {k: v for k, v in data.items()
                                            if "mask" not in k}, None)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
        ({"loss_type": "cosine"}, "no loss 'cosine'; use sigmoid, ipo or hinge"),
        ({"label_smoothing": 0.5}, r"must lie in \[0, 0.5\)"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing is not for 'ipo'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        DPO(**options)
