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

sys.path.append(str(Path(__file__).parent))  # for `import torch_twins`

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


@pytest.fixture(params=["llama", "gpt2"])
def twin(request):
    return request.getfixturevalue(request.param)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, adapter, ids):
    return model.apply({"params": params, "adapter": adapter}, input_ids=ids).logits


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

    model = quiet(
        get_peft_model, twin.reference(), LoraConfig(task_type="CAUSAL_LM", **config)
    ).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def in_peft(twin, directory):
    """Our files on the reference, by PEFT; a warning, of a missing key for example, is an error."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers
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
        make=make,
        llama_config=llama_config,
        gpt2_config=gpt2_config,
        falcon_config=falcon_config,
    )
