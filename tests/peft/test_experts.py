"""Low-rank factors on a mixture's experts and router, as PEFT puts them on parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.peft import lora_math

KEY = jax.random.key(0)
FIELDS = dict(
    vocab_size=62,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    head_dim=8,
    num_local_experts=4,
)
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
ROUTER = "mlp.gate.weight"


@pytest.fixture(scope="module")
def mixtral(kit, tmp_path_factory):
    from transformers import MixtralConfig

    return kit.make(MixtralConfig(**FIELDS), tmp_path_factory.mktemp("mixtral"))


CASES = {
    "experts": dict(target_modules=[], target_parameters=list(EXPERTS)),
    "gate and up": dict(target_modules=["q_proj"], target_parameters=[EXPERTS[0]]),
    "down": dict(target_modules=[], target_parameters=["experts.down_proj"], use_rslora=True),
    "router": dict(target_modules=["v_proj"], target_parameters=[ROUTER]),
    "ranks": dict(
        target_modules=["o_proj"],
        target_parameters=[*EXPERTS, ROUTER],
        rank_pattern={r"layers\.1\.mlp\.experts\.gate_up_proj": 5, "gate.weight": 1},
        alpha_pattern={"down_proj": 3},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_both_ways_and_backward(mixtral, kit, tmp_path, case):
    kit.exchange(mixtral, kit.peft_model(mixtral, r=2, lora_alpha=5, **CASES[case]), tmp_path)


def test_the_set_that_all_linear_means_in_peft(mixtral, kit, tmp_path):
    """PEFT's "all-linear" takes the experts too, gate and up with twice the rank."""
    theirs = kit.peft_model(mixtral, r=2, target_modules="all-linear")
    spec, _ = kit.exchange(mixtral, theirs, tmp_path)
    assert set(spec.target_parameters) == {"gate_up_proj", "down_proj", "gate.weight"}
    assert spec.rank_of("model.layers.0.mlp.experts.gate_up_proj") == 4


def test_shapes_and_start(mixtral, kit):
    spec = peft.LoRA(rank=3, targets=(), target_parameters=(*EXPERTS, ROUTER))
    adapter = peft.init(KEY, spec, mixtral.model)
    mlp = adapter["layers"]["mlp"]
    shapes = {p: x.shape for p, x in tree.flatten(mlp).items()}
    assert shapes == {
        "gate/lora_a": (2, 32, 3),
        "gate/lora_b": (2, 3, 4),
        "gate/lora_scale": (2,),
        "experts/gate_up_proj/lora_a": (2, 4, 32, 3),
        "experts/gate_up_proj/lora_b": (2, 4, 3, 2, 24),
        "experts/gate_up_proj/lora_scale": (2,),
        "experts/down_proj/lora_a": (2, 4, 24, 3),
        "experts/down_proj/lora_b": (2, 4, 3, 32),
        "experts/down_proj/lora_scale": (2,),
    }
    for name, inputs in (("gate_up_proj", 32), ("down_proj", 24)):
        a = mlp["experts"][name]["lora_a"]
        assert 0.95 * inputs**-0.5 < jnp.abs(a).max() <= inputs**-0.5
        assert not mlp["experts"][name]["lora_b"].any()
    np.testing.assert_array_equal(
        kit.logits(mixtral.model, mixtral.params, adapter),
        kit.logits(mixtral.model, mixtral.params, {}),
    )
    model = fmjax.build(mixtral.model.config, scan_layers=False)
    apart = peft.init(KEY, spec, model)
    np.testing.assert_array_equal(
        apart["layers_1"]["mlp"]["experts"]["down_proj"]["lora_a"],
        mlp["experts"]["down_proj"]["lora_a"][1],
    )


def test_the_merged_kernels_compute_the_same(mixtral, kit):
    spec = peft.LoRA(rank=2, targets=(), target_parameters=EXPERTS)
    adapter = moved(peft.init(KEY, spec, mixtral.model))
    flat = tree.flatten(mixtral.params)
    own = adapter["layers"]["mlp"]["experts"]
    for i in range(2):
        layer = {n: {k: x[i] for k, x in leaves.items()} for n, leaves in own.items()}
        delta = lora_math.delta(layer["gate_up_proj"])  # [E, D, 2, F]
        for part, name in enumerate(("gate_proj", "up_proj")):
            path = f"layers/mlp/experts/{name}/weight"
            flat[path] = flat[path].at[i].add(delta[:, :, part])
        path = "layers/mlp/experts/down_proj/weight"
        flat[path] = flat[path].at[i].set(lora_math.merged(flat[path][i], layer["down_proj"]))
    np.testing.assert_allclose(
        kit.logits(mixtral.model, tree.unflatten(flat), {}),
        kit.logits(mixtral.model, mixtral.params, adapter),
        rtol=0,
        atol=kit.ATOL,
    )


def moved(adapter):
    rng = np.random.default_rng(0)

    def move(path, x):
        if path.endswith("scale"):
            return x
        return x + 0.2 * rng.normal(size=x.shape).astype(np.float32)

    return tree.map_with_path(move, adapter)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [dict(expert=2, tensor=2, data=2), dict(fsdp=4, expert=2)])
def test_experts_on_several_devices(mixtral, kit, axes):
    mesh = fmjax.make_mesh(**axes)
    _, params = fmjax.from_pretrained(mixtral.dir, mesh=mesh)
    spec = peft.LoRA(rank=2, targets=(), target_parameters=(*EXPERTS, ROUTER))
    adapter = moved(peft.init(KEY, spec, mixtral.model, params))
    ids = jnp.tile(jnp.asarray(kit.IDS), (4, 1))

    def loss(adapter, params):
        variables = {"params": params, "adapter": adapter}
        return mixtral.model.apply(variables, input_ids=ids).logits.std()

    from fmjax.core import logical
    from fmjax.parallel import DEFAULT_RULES

    with logical.use(mesh, DEFAULT_RULES):
        ours = jax.jit(jax.value_and_grad(loss))(adapter, params)
    single = jax.device_get((adapter, params))
    expected = jax.jit(jax.value_and_grad(loss))(*single)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, expected
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(target_parameters=EXPERTS, dropout=0.1), "dropout=0.1 does not go with"),
        (dict(target_parameters=EXPERTS, use_dora=True), "use_dora=True does not go with"),
        (dict(target_parameters=EXPERTS, lora_bias=True), "lora_bias=True does not go with"),
        (dict(target_parameters=[7]), "must be names"),
        (dict(targets=()), "targets is empty"),
    ],
)
def test_specs_that_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said) as e:
        peft.LoRA(**fields)
    assert "\n" not in str(e.value)


def test_parameters_that_match_nothing(mixtral, llama):
    said = "'experts.w1' matches no experts and no router.*choose from mlp.gate.weight"
    with pytest.raises(ConfigError, match=said):
        peft.init(KEY, peft.LoRA(target_parameters=("experts.w1",)), mixtral.model)
    with pytest.raises(ConfigError, match="'q_proj.weight' matches.*name layers in targets"):
        peft.init(KEY, peft.LoRA(target_parameters=("q_proj.weight",)), llama.model)


def test_a_bank_does_not_hold_experts(mixtral):
    spec = peft.LoRA(rank=2, targets=(), target_parameters=EXPERTS)
    adapter = peft.init(KEY, spec, mixtral.model)
    with pytest.raises(ConfigError, match="experts"):
        chosen = peft.select(peft.bank([adapter]), jnp.array([0, 1]))
        variables = {"params": mixtral.params, "adapter": chosen}
        mixtral.model.apply(variables, input_ids=jnp.ones((2, 3), jnp.int32))


@pytest.mark.parametrize("name", ["input_layernorm", "post_attention_layernorm"])
def test_norms_of_a_mixture_are_trained_whole(mixtral, kit, tmp_path, name):
    theirs = kit.peft_model(mixtral, r=2, target_modules=["q_proj"], modules_to_save=[name])
    kit.exchange(mixtral, theirs, tmp_path)
