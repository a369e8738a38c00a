"""IA³ specs, arrays and files, without PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def shapes(spec, model):
    return {k: v.shape for k, v in tree.flatten(peft.abstract(spec, model)).items()}


def random(spec, twin, **options):
    adapter = peft.init(jax.random.key(0), spec, twin.model, twin.params, **options)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), adapter)


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_defaults_go_by_model_type(llama, gpt2, falcon):
    assert shapes(peft.IA3(), llama.model) == {
        "layers/self_attn/k_proj/ia3_out": (3, 16),
        "layers/self_attn/v_proj/ia3_out": (3, 16),
        "layers/mlp/down_proj/ia3_in": (3, 48),
    }
    assert shapes(peft.IA3(), gpt2.model) == {
        "h/attn/c_attn/ia3_out": (2, 3, 32),
        "h/mlp/c_proj/ia3_in": (2, 128),
    }
    # By groups: two queries, a key and a value of eight features each.
    assert shapes(peft.IA3(), falcon.model)["h/self_attention/query_key_value/ia3_out"] == (
        2,
        2,
        4,
        8,
    )
    assert peft.count(peft.IA3(), llama.model) == 3 * (16 + 16 + 48)


@pytest.mark.parametrize("family", fmjax.models.registry._FAMILIES)
def test_every_family_has_defaults(family):
    from fmjax.peft.ia3 import _DEFAULTS

    # A ResNet has convolutions and one classifier, and (IA)³ scales linear layers.
    assert family in _DEFAULTS or family == "resnet"


def test_gradients_pass_scanned_layers_and_remat(llama, kit):
    ids = jnp.asarray(kit.IDS)
    spec = peft.IA3(targets=("k_proj", "up_proj", "down_proj"))

    def gradients(**execution):
        model, params = fmjax.from_pretrained(llama.dir, **execution)
        adapter = random(spec, llama)
        if not execution.get("scan_layers", True):
            adapter = fmjax.nn.stack.unstack(adapter, "layers", 3)

        def loss(adapter):
            out = model.apply({"params": params, "adapter": adapter}, input_ids=ids)
            return jnp.square(out.logits).mean()

        return jax.jit(jax.grad(loss))(adapter)

    first = gradients()
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(first))
    tolerance = dict(rtol=1e-4, atol=1e-5)
    for x, y in zip(*map(jax.tree.leaves, (first, gradients(remat="full"))), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)
    single = fmjax.nn.stack.restack(gradients(scan_layers=False), "layers", 3)
    for x, y in zip(*map(jax.tree.leaves, (first, single)), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_files_are_the_same_of_scanned_and_single_layers(gpt2, tmp_path):
    spec = peft.IA3()
    adapter = random(spec, gpt2)
    peft.save(tmp_path / "stacked", spec, adapter, gpt2.model, params=gpt2.params)
    model, params = fmjax.from_pretrained(gpt2.dir, scan_layers=False)
    again, single = peft.load(tmp_path / "stacked", model, params)
    assert equal(single, fmjax.nn.stack.unstack(adapter, "h", 2))
    peft.save(tmp_path / "single", again, single, model, params=params)
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "stacked" / name).read_bytes() == (
            tmp_path / "single" / name
        ).read_bytes()


def test_single_layers_may_differ(gpt2, tmp_path):
    model, params = fmjax.from_pretrained(gpt2.dir, scan_layers=False)
    spec = peft.IA3(targets=r".*\.1\..*c_(fc|proj)", feedforward=r".*mlp\.c_proj")
    assert shapes(spec, model) == {
        "h_1/attn/c_proj/ia3_out": (32,),
        "h_1/mlp/c_fc/ia3_out": (128,),
        "h_1/mlp/c_proj/ia3_in": (128,),
    }
    adapter = peft.init(jax.random.key(0), spec, model, params)
    peft.save(tmp_path, spec, adapter, model)
    loaded, again = peft.load(tmp_path, model)
    assert loaded == spec and equal(again, adapter)


def test_lies_like_its_base(llama):
    mesh = fmjax.make_mesh(fsdp=4, tensor=2)
    adapter = random(peft.IA3(), llama, mesh=mesh)
    leaf = adapter["layers"]["self_attn"]["k_proj"]["ia3_out"]
    assert leaf.sharding.spec[-1] == "tensor"


REFUSED = {
    "targets is empty": dict(targets=()),
    "not a regular expression": dict(targets="("),
    "must be names": dict(exclude=3),
    "feedforward 'mlp' is not in targets": dict(targets=("k_proj",), feedforward=("mlp",)),
}


@pytest.mark.parametrize("said, fields", REFUSED.items())
def test_broken_specs_are_refused(said, fields):
    with pytest.raises(ConfigError, match=said):
        peft.IA3(**fields)


MISFITS = {
    "match no linear layer": dict(targets=("norm",)),
    "targets 'c_attn' matches no": dict(targets=("k_proj", "c_attn")),
    "exclude 'c_attn' matches no": dict(exclude=("c_attn",)),
    "feedforward 'k_proj' matches no": dict(targets=r".*v_proj", feedforward=("k_proj",)),
    "'model.embed_tokens', which is no linear": dict(targets=r".*(embed_tokens|k_proj)"),
    "differently, which lie in the same array": dict(targets=r".*\.1\..*k_proj"),
}


@pytest.mark.parametrize("said, fields", MISFITS.items())
def test_specs_that_do_not_fit_are_refused(llama, said, fields):
    with pytest.raises(ConfigError, match=said) as e:
        peft.init(jax.random.key(0), peft.IA3(**fields), llama.model, llama.params)
    assert "\n" not in str(e.value)


def test_a_tied_head_is_refused(gpt2):
    with pytest.raises(ConfigError, match="'lm_head', which is no linear layer of its own"):
        spec = peft.IA3(targets=("c_attn", "lm_head"))
        peft.init(jax.random.key(0), spec, gpt2.model)


CORRUPTIONS = {
    "lacks 'base_model.model.model.layers.0.mlp.down_proj.ia3_l'": lambda t: t.pop(
        "base_model.model.model.layers.0.mlp.down_proj.ia3_l"
    ),
    "holds 'other'": lambda t: t.update(other=np.ones(2, np.float32)),
    r"has shape \[1, 16\] where": lambda t: t.update(
        {k: v.T for k, v in t.items() if "k_proj" in k}
    ),
}


@pytest.mark.parametrize("said, corrupt", CORRUPTIONS.items())
def test_broken_files_are_refused(llama, tmp_path, said, corrupt):
    spec = peft.IA3()
    peft.save(tmp_path, spec, random(spec, llama), llama.model)
    tensors = load_file(tmp_path / WEIGHTS)
    corrupt(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=said):
        peft.load(tmp_path, llama.model)


def test_other_leaves_are_not_saved(llama, tmp_path):
    spec = peft.IA3(targets=("k_proj",))
    adapter = random(spec, llama)
    with pytest.raises(CheckpointError, match="does not belong"):
        peft.save(tmp_path, spec, random(peft.IA3(), llama), llama.model)
    with pytest.raises(CheckpointError, match="lacks 'layers/self_attn/v_proj/ia3_out'"):
        peft.save(tmp_path, peft.IA3(), adapter, llama.model)


def test_unknown_keys_of_the_config_are_refused(llama, tmp_path):
    spec = peft.IA3()
    peft.save(tmp_path, spec, random(spec, llama), llama.model)
    file = tmp_path / CONFIG
    file.write_text(file.read_text().replace("{", '{"layers_to_transform": [1],', 1))
    with pytest.raises(CheckpointError, match=r"layers_to_transform=\[1\] is not supported"):
        peft.load(tmp_path, llama.model)
