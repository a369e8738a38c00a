"""Trained biases, of the base and of the factors: as in PEFT, which names and saves them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft, quant
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError

KEY = jax.random.key(0)
CASES = [
    ("gpt2", dict(bias="all", target_modules=["c_attn"])),
    ("gpt2", dict(bias="lora_only", target_modules=["c_attn", "mlp.c_proj", "wte"])),
    ("gpt2", dict(bias="all", target_modules=["c_fc"], layers_to_transform=[1])),
    ("falcon", dict(bias="all", target_modules=["query_key_value"])),
    ("llama", dict(bias="lora_only", target_modules=["q_proj"])),
    ("gpt2", dict(lora_bias=True, target_modules=["c_attn", "attn.c_proj"])),
    ("llama", dict(lora_bias=True, target_modules=["o_proj"], layers_to_transform=[0, 2])),
    ("gpt2", dict(lora_bias=True, bias="lora_only", target_modules=["c_attn"])),
    ("gpt2", dict(use_dora=True, bias="all", target_modules=["c_attn", "c_fc"])),
    ("bert", dict(bias="all", target_modules=["query"], task_type="SEQ_CLS")),
    ("bert", dict(bias="lora_only", target_modules=["key", "output.dense"], task_type="SEQ_CLS")),
]


@pytest.mark.parametrize(("family", "config"), CASES)
def test_both_ways_and_backward(request, kit, tmp_path, family, config):
    twin = request.getfixturevalue(family)
    kit.exchange(twin, kit.peft_model(twin, r=2, **config), tmp_path)


def test_which_biases_are_trained(gpt2):
    def copies(bias):
        spec = peft.LoRA(targets=("c_attn", "wpe"), bias=bias)
        adapter = peft.init(KEY, spec, gpt2.model, gpt2.params)
        return {p for p in tree.flatten(adapter) if p.endswith("/bias")}

    assert not copies("none")
    assert copies("lora_only") == {"h/attn/c_attn/bias"}
    every = {p for p in tree.flatten(gpt2.params) if p.endswith("/bias")}
    assert copies("all") == every and len(every) == 7


def test_copies_start_as_the_base_has_them_in_their_own_memory(gpt2, kit):
    spec = peft.LoRA(targets=("c_attn",), bias="all")
    adapter = peft.init(KEY, spec, gpt2.model, gpt2.params)
    bias, base = (t["ln_f"]["bias"] for t in (adapter, gpt2.params))
    np.testing.assert_array_equal(bias, base)
    assert bias.unsafe_buffer_pointer() != base.unsafe_buffer_pointer()
    np.testing.assert_array_equal(
        kit.logits(gpt2.model, gpt2.params, adapter), kit.logits(gpt2.model, gpt2.params, {})
    )
    with pytest.raises(ConfigError, match="bias='all' start as the base has them; pass params="):
        peft.init(KEY, spec, gpt2.model)


def test_a_packed_kernel_has_no_copy(llama):
    packed = quant.quantize(llama.params["lm_head"]["kernel"])
    params = llama.params | {"lm_head": {"kernel": packed}}
    with pytest.raises(ConfigError, match="lm_head/kernel.*not packed"):
        peft.init(KEY, peft.LoRA(modules_to_save=("lm_head",)), llama.model, params)


def test_biases_of_some_layers_of_a_stack_need_layers_apart(gpt2, kit, tmp_path):
    spec = peft.LoRA(rank=2, targets=("c_attn",), bias="lora_only", layers_to_transform=(1,))
    with pytest.raises(ConfigError, match="'transformer.h.1.attn.c_attn' but not.*scan_layers"):
        peft.init(KEY, spec, gpt2.model, gpt2.params)
    model, params = fmjax.from_pretrained(gpt2.dir, scan_layers=False)
    theirs = kit.peft_model(
        gpt2, r=2, target_modules=["c_attn"], bias="lora_only", layers_to_transform=[1]
    )
    kit.quiet(theirs.save_pretrained, tmp_path)
    spec, adapter = peft.load(tmp_path, model, params)
    assert {p for p in tree.flatten(adapter) if p.endswith("bias")} == {"h_1/attn/c_attn/bias"}
    np.testing.assert_allclose(
        kit.logits(model, params, adapter), kit.torch_logits(theirs), rtol=0, atol=kit.ATOL
    )


def test_specs_that_are_refused(llama):
    for fields, said in (
        (dict(bias="some"), "bias 'some' is unknown; choose from none, all, lora_only"),
        (dict(bias=None), "bias None is unknown"),
        (dict(lora_bias=1), "lora_bias=1 must be True or False"),
    ):
        with pytest.raises(ConfigError, match=said):
            peft.LoRA(**fields)
    with pytest.raises(ConfigError, match="lora_bias does not go with the embedding"):
        peft.init(KEY, peft.LoRA(targets=("embed_tokens",), lora_bias=True), llama.model)


def test_an_adapter_without_its_biases_is_not_saved(gpt2, tmp_path):
    spec = peft.LoRA(targets=("c_attn",), bias="lora_only")
    adapter = peft.init(KEY, peft.LoRA(targets=("c_attn",)), gpt2.model)
    with pytest.raises(CheckpointError, match="lacks 'h/attn/c_attn/bias'.*bias='lora_only' ask"):
        peft.save(tmp_path, spec, adapter, gpt2.model)


def test_in_bfloat16_the_constants_stay_float32(llama):
    spec = peft.LoRA(targets=("q_proj",), dropout=0.1, use_dora=True)
    wide = peft.init(KEY, spec, llama.model, llama.params)
    adapter = peft.init(KEY, spec, llama.model, llama.params, dtype="bfloat16")
    described = peft.abstract(spec, llama.model, dtype="bfloat16")
    for path, x in tree.flatten(adapter).items():
        own = jnp.float32 if path.endswith(("scale", "dropout")) else jnp.bfloat16
        assert x.dtype == tree.flatten(described)[path].dtype == own
        np.testing.assert_array_equal(x, tree.flatten(wide)[path].astype(own))
    plain = tree.flatten(peft.abstract(spec, llama.model)).values()
    assert all(leaf.dtype == jnp.float32 for leaf in plain)


@pytest.mark.parametrize("dtype", ["int8", "half a float", "float16x"])
def test_adapters_are_of_floats(llama, dtype):
    with pytest.raises(ConfigError, match=f"dtype {dtype!r}"):
        peft.init(KEY, peft.LoRA(), llama.model, dtype=dtype)


def test_a_bfloat16_adapter_goes_through_peft(gpt2, kit, tmp_path):
    spec = peft.LoRA(rank=2, targets=("c_attn",), bias="all", use_dora=True)
    adapter = kit.trained(gpt2, spec, dtype="bfloat16")
    peft.save(tmp_path, spec, adapter, gpt2.model)
    _, back = peft.load(tmp_path, gpt2.model, gpt2.params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(b.dtype), b), adapter, back)
    theirs = kit.torch_logits(kit.in_peft(gpt2, tmp_path))
    np.testing.assert_allclose(
        kit.logits(gpt2.model, gpt2.params, back), theirs, rtol=0, atol=kit.ATOL
    )


@pytest.mark.parametrize(
    ("family", "names", "config"),
    [
        ("llama", ["input_layernorm", "norm"], dict(target_modules=["q_proj"])),
        ("gpt2", ["ln_1", "ln_f"], dict(target_modules=["c_attn"], bias="all")),
        ("bert", ["LayerNorm"], dict(target_modules=["query"], task_type="SEQ_CLS")),
    ],
)
def test_norms_that_are_trained_whole(request, kit, tmp_path, family, names, config):
    twin = request.getfixturevalue(family)
    theirs = kit.peft_model(twin, r=2, modules_to_save=list(names), **config)
    spec, adapter = kit.exchange(twin, theirs, tmp_path)
    ends = {
        path.rpartition("/")[2] for path in tree.flatten(adapter) if "norm" in path or "ln" in path
    }
    assert "scale" in ends and set(names) <= set(spec.modules_to_save)
