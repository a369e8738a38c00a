"""Mixtral against transformers: logits, routing, gradients, files, experts over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import MixtralConfig as HFMixtralConfig
from transformers import MixtralForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import fmjax
from fmjax.convert import param_items
from fmjax.core import logical
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.models.mixtral.config import MixtralConfig
from fmjax.models.registry import get_family
from fmjax.objectives.router import load_balancing_loss
from fmjax.parallel import DEFAULT_RULES, param_shardings, shard_batch

CASES = {
    "plain": {},
    "five-experts-three-a-token": dict(num_local_experts=5, num_experts_per_tok=3),
    "one-a-token-tied": dict(num_experts_per_tok=1, tie_word_embeddings=True),
    "all-experts-three-layers": dict(
        num_local_experts=3, num_experts_per_tok=3, num_hidden_layers=3
    ),
    "window-one-kv-head": dict(sliding_window=4, num_key_value_heads=1),
    "gelu-wide-heads-eps": dict(hidden_act="gelu", head_dim=12, rms_norm_eps=1e-2),
    "more-experts-than-tokens-need": dict(num_local_experts=29, num_key_value_heads=4),
    "linear-rope": dict(rope_parameters={"rope_type": "linear", "factor": 3.0}),
}


def make(parity, directory, name, dtype="float32"):
    options = {
        "vocab_size": parity.vocab,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "max_position_embeddings": 32,
        "initializer_range": 0.15,
    } | CASES[name]
    rope = {"rope_type": "default", "rope_theta": 1e4} | options.pop("rope_parameters", {})
    config = HFMixtralConfig(**options, rope_parameters=rope)
    return parity.reference(MixtralForCausalLM, config, directory, dtype)


@pytest.mark.parametrize("name", CASES)
def test_logits_greedy_tokens_and_export(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)
    parity.greedy(hf, model, params)


@pytest.mark.parametrize("name", ["plain", "five-experts-three-a-token"])
def test_unscanned_layers_and_several_files(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert params["layers_0"]["mlp"]["experts"]["up_proj"]["weight"].shape[1:] == (32, 24)
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


def test_half_precision_keeps_every_bit(parity, tmp_path):
    hf = make(parity, tmp_path / "hf", "plain", "bfloat16")
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)


@pytest.mark.parametrize("name", ["five-experts-three-a-token", "one-a-token-tied"])
def test_gradients(parity, tmp_path, name):
    """Of every tensor of the file: the reference's, fused in memory, take its way to the file."""
    import torch

    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    ids = np.random.default_rng(1).integers(0, parity.vocab, (2, 10))
    hf(input_ids=torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()
    grads = {name: p.grad for name, p in hf.named_parameters()}
    theirs = {k: v.numpy() for k, v in revert_weight_conversion(hf, grads).items()}

    def loss(params):
        logits = model.apply({"params": params}, input_ids=ids).logits[:, :-1]
        chosen = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        return (jax.nn.logsumexp(logits, -1) - chosen).mean()

    rows = get_family("mixtral").rows(model.config)
    ours = {i.name: i.read() for i in param_items(rows, jax.jit(jax.grad(loss))(params))}
    assert ours.keys() == theirs.keys()
    for key, grad in theirs.items():
        np.testing.assert_allclose(ours[key], grad, rtol=0, atol=1e-4, err_msg=key)
    assert np.abs(theirs["model.layers.0.block_sparse_moe.gate.weight"]).max() > 1e-4 or (
        model.config.num_experts_per_tok == 1  # a weight of 1 whatever the logits
    )


def test_router_logits_and_their_loss(parity, tmp_path):
    import torch

    hf = make(parity, tmp_path, "five-experts-three-a-token")
    model, params = fmjax.from_pretrained(tmp_path)
    ids = np.random.default_rng(1).integers(0, parity.vocab, (2, 10))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        theirs = hf(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            output_router_logits=True,
        )
    run = jax.jit(model.apply, static_argnames="output_router_logits")
    out = run({"params": params}, input_ids=ids, attention_mask=mask, output_router_logits=True)
    assert len(out.router_logits) == 2
    for a, b in zip(out.router_logits, theirs.router_logits, strict=True):
        np.testing.assert_allclose(a.reshape(-1, 5), b.numpy(), atol=1e-4)
    ours = load_balancing_loss(out.router_logits, 3, mask)
    np.testing.assert_allclose(ours, theirs.aux_loss.numpy(), rtol=1e-5)
    plain = load_balancing_loss_func(theirs.router_logits, 5, 3)
    np.testing.assert_allclose(load_balancing_loss(out.router_logits, 3), plain, rtol=1e-5)
    assert jax.eval_shape(model.apply, {"params": params}, ids).router_logits is None


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_files_with_fused_experts_are_read(parity, tmp_path, prefix):
    hf = make(parity, tmp_path, "plain")
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    fused = {k: v.numpy() for k, v in hf.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in fused
    fused = {k.replace("model.", prefix): v for k, v in fused.items()}
    save_file(fused, file, metadata={"format": "pt"})
    mesh = fmjax.make_mesh(expert=2, fsdp=2, tensor=2)
    rules = (("vocab", None), *DEFAULT_RULES)
    model, params = fmjax.from_pretrained(tmp_path, mesh=mesh, rules=rules)
    parity.logits(hf, model, params, 10)
    fmjax.hub.convert(tmp_path, tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == stored.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(again[name], tensor)
    twin = {"model.layers.0.block_sparse_moe.experts.3.w1.weight": np.zeros((24, 32), np.float32)}
    save_file(fused | twin, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="experts.3.w1.weight' and .*gate_up_proj', one par"):
        fmjax.from_pretrained(tmp_path)


@pytest.mark.parametrize("sizes", [dict(expert=4, fsdp=2), dict(expert=2, fsdp=2, tensor=2)])
def test_experts_over_devices_give_the_outputs_and_gradients_of_one(parity, tmp_path, sizes):
    make(parity, tmp_path, "plain")
    model, params = fmjax.from_pretrained(tmp_path)
    ids = np.random.default_rng(1).integers(0, parity.vocab, (8, 10)).astype(np.int32)

    def loss(params, ids):
        out = model.apply({"params": params}, input_ids=ids, output_router_logits=True)
        balance = load_balancing_loss(out.router_logits, 2)
        return (jax.nn.logsumexp(out.logits, -1) ** 2).mean() + balance, out.logits

    grad = jax.value_and_grad(loss, has_aux=True)
    alone = jax.jit(grad)(params, ids)
    mesh = fmjax.make_mesh(data=1, **sizes)
    rules = (("vocab", None), ("act_vocab", None), *DEFAULT_RULES)  # 61 is odd
    shardings = param_shardings(fmjax.abstract_params(model), mesh, rules)
    sharded = jax.device_put(params, shardings)
    kernels = sharded["layers"]["mlp"]["experts"]["gate_proj"]["weight"]
    assert kernels.addressable_shards[0].data.shape == (
        2,
        4 // sizes["expert"],
        16,
        24 // sizes.get("tensor", 1),
    )

    @functools.partial(jax.jit, out_shardings=((None, None), shardings))
    def on_mesh(params, ids):
        with logical.use(mesh, rules):
            return grad(params, ids)

    together = on_mesh(sharded, shard_batch({"ids": ids}, mesh, rules)["ids"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), together, alone)


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 must be between 1 and"),
        ({"sliding_window": 0}, "sliding_window=0"),
        ({"attention_bias": True}, "attention_bias=True"),
    ],
)
def test_what_is_not_understood_is_refused(hf, message):
    with pytest.raises(ConfigError, match=message):
        MixtralConfig.from_hf({"model_type": "mixtral", **hf})
