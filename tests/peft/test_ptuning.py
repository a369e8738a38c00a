"""P-tuning: the network that computes a prompt, against PEFT and alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_twins import IDS, MASK, make, move

from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError

P = 4


@pytest.fixture(scope="module", params=["GPT2LMHeadModel", "LlamaForCausalLM"])
def twin(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


def in_torch(twin, kit, kind, hidden):
    from peft import PromptEncoderConfig, get_peft_model

    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=hidden,
    )
    return move(kit.quiet(get_peft_model, twin.reference(), config).eval(), size=0.05)


def encoder(network, of):
    """PEFT's network as ours; `of` takes what is wanted from a parameter."""
    found = {"embedding": of(network.embedding.weight)}
    linear = [m for m in network.mlp_head if hasattr(m, "weight")]
    for name, layer in zip(("output", "hidden", "input"), reversed(linear), strict=False):
        found[name] = {"kernel": of(layer.weight).T, "bias": of(layer.bias)}
    for name, x in getattr(network, "lstm_head", network.embedding).named_parameters():
        if "_l" in name:  # weight_ih_l0_reverse
            leaf, which, layer, *reverse = name.split("_")
            found.setdefault(f"lstm_{layer[1:]}", {}).setdefault(
                "backward" if reverse else "forward", {}
            ).setdefault("input" if which == "ih" else "recurrent", {})[
                "kernel" if leaf == "weight" else "bias"
            ] = of(x).T
    return {"encoder": jax.tree.map(jnp.asarray, found)}


@pytest.mark.parametrize("kind, hidden", [("mlp", 24), ("lstm", 12)])
def test_trains_as_peft_does(twin, kit, tmp_path, kind, hidden):
    import torch

    reference = in_torch(twin, kit, kind, hidden)
    network = reference.prompt_encoder.default
    spec = peft.PTuning(P, hidden_size=hidden, kind=kind)
    adapter = encoder(network, lambda x: x.detach().numpy())
    shapes = jax.tree.map(lambda x: x.shape, adapter)
    assert shapes == jax.tree.map(lambda x: x.shape, peft.abstract(spec, twin.model))
    assert peft.count(spec, twin.model) == reference.get_nb_trainable_parameters()[0]

    out = reference(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits[:, P:]
    weights = np.random.default_rng(2).normal(size=out.shape).astype(np.float32)
    weights *= MASK[..., None]
    (out * torch.tensor(weights)).sum().backward()
    apply = peft.applied(spec, twin.model)

    def loss(adapter):
        variables = {"params": twin.params, "adapter": adapter}
        logits = apply(variables, jnp.asarray(IDS), MASK).logits
        return (logits * weights).sum(), logits

    (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
    real = MASK.astype(bool)
    np.testing.assert_allclose(ours[real], out.detach().numpy()[real], rtol=0, atol=1e-4)
    expected = tree.flatten(encoder(network, lambda x: x.grad.numpy()))
    for path, gradient in tree.flatten(gradients).items():
        assert np.abs(gradient).max() > 1e-3, path
        np.testing.assert_allclose(gradient, expected[path], rtol=1e-3, atol=1e-4, err_msg=path)

    # Files hold the prompt alone.
    kit.quiet(reference.save_pretrained, tmp_path / "theirs")
    peft.save(tmp_path / "ours", spec, adapter, twin.model)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys() == {"prompt_embeddings"}
    np.testing.assert_allclose(*(f["prompt_embeddings"] for f in files), rtol=0, atol=1e-6)
    configs = [
        json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in ("theirs", "ours")
    ]
    same = ("peft_type", "token_dim", "encoder_hidden_size", "encoder_reparameterization_type")
    assert [configs[0][key] for key in same] == [configs[1][key] for key in same]
    for directory in ("theirs", "ours"):
        again, prompt = peft.load(tmp_path / directory, twin.model)
        assert again == peft.Prompt(P)
        variables = {"params": twin.params, "adapter": prompt}
        logits = jax.jit(twin.model.apply)(variables, jnp.asarray(IDS), MASK).logits
        np.testing.assert_allclose(logits[real], ours[real], rtol=0, atol=1e-4)
    back = kit.in_peft(twin, tmp_path / "ours")
    with torch.no_grad():
        again = back(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits
    np.testing.assert_allclose(again[:, P:].numpy()[real], ours[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_starts_as_peft_does(gpt2, kind):
    """Vectors N(0, 1), weights and biases uniform."""
    spec = peft.PTuning(20, hidden_size=40, kind=kind)
    flat = tree.flatten(peft.init(jax.random.key(0), spec, gpt2.model))
    assert abs(flat["encoder/embedding"].std() - 1) < 0.1
    bounds = {"encoder/output/kernel": 40**-0.5 if kind == "mlp" else 80**-0.5}
    if kind == "lstm":
        bounds |= {"encoder/lstm_0/forward/input/kernel": 40**-0.5}
    for path, bound in bounds.items():
        assert 0.95 * bound < np.abs(flat[path]).max() <= bound
        assert np.abs(flat[path.replace("kernel", "bias")]).max() > bound / 2


def test_an_unexpanded_adapter_is_refused(gpt2, kit):
    spec = peft.PTuning(P)
    adapter = peft.init(jax.random.key(0), spec, gpt2.model)
    variables = {"params": gpt2.params, "adapter": adapter}
    with pytest.raises(ConfigError, match="peft.expand"):
        gpt2.model.apply(variables, jnp.asarray(kit.IDS))
    expanded = peft.expand(spec, gpt2.model, adapter)
    assert tree.flatten(expanded).keys() == {"wte/prompt"}
    assert expanded["wte"]["prompt"].shape == (P, 32)


REFUSED = {
    "num_virtual_tokens=-1 must": dict(num_virtual_tokens=-1),
    "hidden_size=0 must": dict(hidden_size=0),
    "kind='gru' is unknown; choose mlp or lstm": dict(kind="gru"),
}


@pytest.mark.parametrize("said, fields", REFUSED.items())
def test_broken_specs_are_refused(said, fields):
    with pytest.raises(ConfigError, match=said):
        peft.PTuning(**fields)


def test_a_prompt_of_another_length_is_not_saved(gpt2, tmp_path):
    adapter = peft.init(jax.random.key(0), peft.PTuning(P), gpt2.model)
    with pytest.raises(CheckpointError, match=r"lacks 'wte/prompt' \(5, 32\)"):
        peft.save(tmp_path, peft.PTuning(5), adapter, gpt2.model)
