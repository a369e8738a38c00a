"""Tiny transformers models, their twins here, and adapters on both sides."""

import functools
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree

sys.path.append(str(Path(__file__).parent))  # for the modules of cases beside the tests

ATOL = 1e-4
VOCAB = 62
IDS = np.random.default_rng(1).integers(0, VOCAB, (2, 9))


def llama_config(**changes):
    from transformers import LlamaConfig

    fields = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=32,
    )
    return LlamaConfig(**(fields | changes))


def gpt2_config(**changes):
    from transformers import GPT2Config

    fields = dict(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2Config(**(fields | changes))


def falcon_config(**changes):
    from transformers import FalconConfig

    fields = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        bias=True,
        initializer_range=0.2,
        max_position_embeddings=32,
    )
    return FalconConfig(**(fields | changes))


def make(config, directory):
    """A random model of transformers saved in `directory`, and the same one here."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    model, params = fmjax.from_pretrained(directory)

    def reference():
        return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()

    return SimpleNamespace(dir=directory, model=model, params=params, reference=reference)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return make(llama_config(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    return make(gpt2_config(), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def falcon(tmp_path_factory):
    return make(falcon_config(), tmp_path_factory.mktemp("falcon"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification

    directory = tmp_path_factory.mktemp("bert")
    fields = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=44, num_hidden_layers=2)
    fields |= dict(num_attention_heads=4, max_position_embeddings=16, initializer_range=0.2)
    config = BertConfig(**fields, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(directory)
    model, params = fmjax.from_pretrained(directory)

    def reference():
        options = dict(attn_implementation="eager")
        return BertForSequenceClassification.from_pretrained(directory, **options).eval()

    return SimpleNamespace(dir=directory, model=model, params=params, reference=reference)


@pytest.fixture(params=["llama", "gpt2"])
def twin(request):
    return request.getfixturevalue(request.param)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, adapter, ids):
    return model.apply({"params": params, "adapter": adapter}, input_ids=ids).logits


@functools.partial(jax.jit, static_argnums=0)
def _logits_and_gradients(model, params, adapter, ids, weights):
    """Of the mean of weighted logits, for the adapter's arrays."""

    def loss(adapter):
        logits = model.apply({"params": params, "adapter": adapter}, input_ids=ids).logits
        return (logits * weights).mean(), logits

    gradients, logits = jax.grad(loss, has_aux=True)(adapter)
    return logits, gradients


def logits(model, params, adapter):
    return np.asarray(_apply(model, params, adapter, jnp.asarray(IDS, jnp.int32)))


def torch_logits(module):
    import torch

    with torch.no_grad():
        return module(input_ids=torch.tensor(IDS)).logits.numpy()


def quiet(function, *args, **kwargs):
    """PEFT warns of much that is as it should be: Conv1D layouts, copied embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def perturbed(adapter, seed=1, size=0.3):
    """The adapter after a pretended training: every trained number that is not padding moves."""
    rng = np.random.default_rng(seed)
    flat = tree.flatten(adapter)

    def move(path, x):
        module, _, name = path.rpartition("/")
        if name not in ("lora_a", "lora_b"):
            return x
        a = np.asarray(flat[f"{module}/lora_a"])
        b = np.asarray(flat[f"{module}/lora_b"]).reshape(*a.shape[:-2], a.shape[-1], -1)
        own = a.any(-2) | b.any(-1)  # [..., r]
        moved = np.asarray(x) + size * rng.normal(size=x.shape).astype(np.float32)
        own = (
            own[..., None, :]
            if name == "lora_a"
            else own.reshape(own.shape + (1,) * (x.ndim - own.ndim))
        )
        return jnp.asarray(np.where(own, moved, 0))

    return tree.map_with_path(move, adapter)


def trained(twin, spec, **options):
    """An adapter of `spec` whose both factors are nonzero."""
    return perturbed(peft.init(jax.random.key(0), spec, twin.model, twin.params, **options))


def peft_model(twin, **config):
    """A PEFT model on the reference, with random factors."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = {"task_type": "CAUSAL_LM"} | config
    model = quiet(get_peft_model, twin.reference(), LoraConfig(**config)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def exchange(twin, theirs, directory):
    """Asserts that an adapter of PEFT computes, learns and is filed the same here.

    Forward and gradient of every trained array, the number of them, and both directions of the
    files bit for bit. Returns (spec, adapter).
    """
    import torch
    from safetensors.numpy import load_file

    quiet(theirs.save_pretrained, directory / "theirs")
    spec, adapter = peft.load(directory / "theirs", twin.model, twin.params)
    output = theirs(input_ids=torch.tensor(IDS)).logits
    expected = output.detach().numpy()
    weights = np.random.default_rng(2).normal(size=output.shape).astype(np.float32)
    ours, gradients = _logits_and_gradients(
        twin.model, twin.params, adapter, jnp.asarray(IDS), weights
    )
    np.testing.assert_allclose(ours, expected, rtol=0, atol=ATOL)
    assert np.abs(logits(twin.model, twin.params, {}) - expected).max() > 0.05
    (output * torch.tensor(weights)).mean().backward()
    # A gradient has the layout of its adapter, so it can be filed like one.
    constant = tree.match_rules([(rf, not keep) for rf, keep in peft.TRAINABLE], adapter)
    gradients = tree.map_with_path(lambda _, g, x, c: x if c else g, gradients, adapter, constant)
    peft.save(directory / "gradients", spec, gradients, twin.model)
    ours = load_file(directory / "gradients" / "adapter_model.safetensors")
    checked = 0
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad and "original_module" not in name:
            key = name.replace(".modules_to_save.default", "").replace(".default", "")
            key = key.replace("magnitude_vector.weight", "magnitude_vector")
            grad = parameter.grad.numpy()
            atol = max(1e-5, 1e-4 * np.abs(grad).max())
            np.testing.assert_allclose(ours.pop(key), grad, rtol=1e-4, atol=atol, err_msg=key)
            checked += parameter.numel()
    assert not ours
    assert peft.count(spec, twin.model) == checked

    peft.save(directory / "ours", spec, adapter, twin.model, params=twin.params)
    files = [load_file(directory / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    for key, value in files[1].items():
        np.testing.assert_array_equal(value, files[0][key], key)
    again, same = peft.load(directory / "ours", twin.model, twin.params)
    assert again == spec
    jax.tree.map(np.testing.assert_array_equal, same, adapter)
    back = in_peft(twin, directory / "ours")
    np.testing.assert_allclose(torch_logits(back), expected, rtol=0, atol=1e-6)
    return spec, adapter


def in_peft(twin, directory):
    """Our files on the reference, by PEFT; a warning, of a missing key for example, is an error."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers
        warnings.filterwarnings("ignore", ".*tie_word_embeddings=True")  # a note on merging
        warnings.filterwarnings(
            "ignore", "fan_in_fan_out is set to True"
        )  # of one layer of several
        warnings.filterwarnings("ignore", ".*has no bias")  # a note on what it cannot merge
        # It looks for patterns of parameters among the modules, and applies them all the same.
        warnings.filterwarnings("ignore", ".*keys did not match any targeted module")
        return PeftModel.from_pretrained(twin.reference(), directory).eval()


@pytest.fixture(scope="session")
def kit():
    return SimpleNamespace(
        ATOL=ATOL,
        IDS=IDS,
        logits=logits,
        torch_logits=torch_logits,
        quiet=quiet,
        trained=trained,
        peft_model=peft_model,
        in_peft=in_peft,
        exchange=exchange,
        make=make,
        llama_config=llama_config,
        gpt2_config=gpt2_config,
        falcon_config=falcon_config,
    )
