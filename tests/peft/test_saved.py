"""Modules trained whole: values, placement, training, merging, files, and what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import CheckpointError, ConfigError
from fmjax.peft.base import Base
from fmjax.peft.fingerprint import fingerprint

KEY = jax.random.key(0)
IDS = jnp.asarray(np.random.default_rng(0).integers(2, 40, (2, 6)), jnp.int32)
SPEC = peft.LoRA(rank=2, targets=("query",), modules_to_save=("classifier",))
FIELDS = dict(
    model_type="bert",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=8,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    architectures=["BertForSequenceClassification"],
    num_labels=4,
)


def build(**fields):
    options = {k: fields.pop(k) for k in ("scan_layers", "dtype") if k in fields}
    return fmjax.build(FIELDS | fields, **options)


@pytest.fixture(scope="module")
def bert():
    model = build()
    return model, fmjax.init_params(model, KEY)


def fresh(bert, spec=SPEC, seed=1):
    """An adapter after a pretended training: everything but the constants moves."""
    flat = tree.flatten(peft.init(KEY, spec, *bert))
    rng = np.random.default_rng(seed)
    trained = tree.flatten(tree.match_rules(peft.TRAINABLE, tree.unflatten(flat)))
    return tree.unflatten(
        {
            p: x + trained[p] * jnp.asarray(rng.normal(size=x.shape), x.dtype)
            for p, x in flat.items()
        }
    )


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, adapter):
    return model.apply({"params": params, "adapter": adapter}, input_ids=IDS).logits


def logits(model, params, adapter):
    return np.asarray(_logits(model, params, adapter))


def refused(said, function, *args, error=ConfigError, **kwargs):
    with pytest.raises(error, match=said) as e:
        function(*args, **kwargs)
    assert "\n" not in str(e.value)


def test_copies_are_float32_and_named_like_their_originals(bert):
    model, params = bert
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    flat = tree.flatten(peft.init(KEY, SPEC, model, low))
    specs = tree.flatten(peft.abstract(SPEC, model))
    assert flat.keys() == specs.keys()
    assert specs["classifier/kernel"].shape == (16, 4)
    assert specs["classifier/kernel"].axes == ("embed", None)
    for leaf in ("kernel", "bias"):
        copy = flat[f"classifier/{leaf}"]
        assert copy.dtype == jnp.float32
        np.testing.assert_array_equal(copy, low["classifier"][leaf].astype(jnp.float32))
    assert peft.count(SPEC, model) == 2 * 2 * (16 + 16) + 16 * 4 + 4
    assert peft.LoRA(modules_to_save="classifier").modules_to_save == ("classifier",)
    assert hash(SPEC) == hash(peft.LoRA(2, targets=["query"], modules_to_save=["classifier"]))


@pytest.mark.parametrize("options", [{}, {"scan_layers": False}])
def test_a_copy_computes_what_the_parameter_would(bert, options):
    model = build(dtype="bfloat16", **options)
    params = fmjax.init_params(model, KEY)
    spec = peft.LoRA(rank=2, targets=("query",), modules_to_save=("pooler", "value"))
    copies = tree.flatten(fresh((model, params), spec))
    copies = {p: x for p, x in copies.items() if p in tree.flatten(params)}
    assert len(copies) == 4 if not options else 6
    replaced = tree.unflatten(tree.flatten(params) | copies)
    ours = logits(model, params, tree.unflatten(copies))
    np.testing.assert_array_equal(ours, logits(model, replaced, {}))
    assert np.abs(ours - logits(model, params, {})).max() > 0.01


def test_a_copy_of_another_shape(bert):
    model, params = bert
    adapter = {"classifier": {"kernel": jnp.zeros((16, 5))}}
    refused("adapter's 'classifier/kernel' has shape .16, 5. where", logits, *bert, adapter)
    refused("adapter's 'classifier/kernel' .16, 5. does not fit", peft.merge, *bert, adapter)


def test_only_adapter_and_copies_are_trained_and_have_moments(bert):
    from fmjax.objectives.causal_lm import CausalLM
    from fmjax.train import TRAIN_ADAPTER, adamw, make_step

    class Task(CausalLM):
        def loss(self, apply, variables, extra, batch, rng):
            out = apply(variables, input_ids=batch["input_ids"]).logits
            loss = jax.nn.logsumexp(out, -1) - out[:, 0]
            return loss.sum(), jnp.float32(len(loss)), {}, extra

    model, params = bert
    adapter = peft.init(KEY, SPEC, model, params)
    step = make_step(model, Task(), adamw(0.1))
    state = step.init({"params": params, "adapter": adapter}, KEY)
    trained, _ = step.split(state.variables)
    own = {"kernel", "bias"}
    assert set(tree.flatten(trained)) == {
        *(f"adapter/classifier/{leaf}" for leaf in own),
        *(f"adapter/layers/attention/query/lora_{leaf}" for leaf in "ab"),
    }
    assert tree.nbytes(state.opt_state) == 2 * tree.nbytes(trained) + 4
    assert tree.count(trained) == peft.count(SPEC, model)
    for _ in range(2):
        state, _ = step(state, {"input_ids": np.asarray(IDS)})
    assert all(not x.is_deleted() for x in jax.tree.leaves(params))
    for leaf in own:
        moved = state.variables["adapter"]["classifier"][leaf]
        assert np.abs(moved - params["classifier"][leaf]).min() > 0.01
    # One rule, stated once, for paths with and without the collection.
    flat = tree.flatten({"adapter": adapter, "params": params})
    inside = tree.flatten({"adapter": tree.match_rules(peft.TRAINABLE, adapter)})
    rule = tree.flatten(tree.match_rules(TRAIN_ADAPTER, tree.unflatten(flat)))
    assert rule == {path: inside.get(path, False) for path in flat}


def test_copies_lie_like_their_originals():
    mesh = fmjax.make_mesh(fsdp=4, tensor=2)
    model = build()
    params = fmjax.init_params(model, KEY, mesh=mesh)
    by_params = peft.init(KEY, SPEC, model, params)
    by_rules = peft.init(KEY, SPEC, model, params, mesh=mesh)
    kernel = by_rules["classifier"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec("fsdp", None))
    for a, b in zip(jax.tree.leaves(by_params), jax.tree.leaves(by_rules), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        np.testing.assert_array_equal(a, b)
    merged = peft.merge(model, params, by_params)
    assert merged["classifier"]["kernel"].sharding == params["classifier"]["kernel"].sharding


def test_merging_puts_the_copies_in(bert):
    model, params = bert
    adapter = fresh(bert)
    merged = peft.merge(model, params, adapter)
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(merged["classifier"][leaf], adapter["classifier"][leaf])
    np.testing.assert_allclose(
        logits(model, merged, {}), logits(model, params, adapter), rtol=0, atol=1e-5
    )
    jax.tree.map(lambda x: x.delete(), adapter["classifier"])
    assert np.isfinite(merged["classifier"]["kernel"]).all()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert peft.merge(model, low, fresh(bert))["classifier"]["kernel"].dtype == jnp.bfloat16
    refused("replaced 'classifier/.*keep the base's", peft.unmerge, model, merged, fresh(bert))
    bare = build(architectures=["BertModel"])
    own = {"classifier": fresh(bert)["classifier"]}
    refused("touches 'classifier/.*', which these", peft.merge, bare, params["layers"], own)


def test_the_base_is_known_by_what_is_not_replaced(bert, tmp_path):
    model, params = bert
    base, flat = Base.of(model), tree.flatten(params)
    adapter = fresh(bert)
    peft.save(tmp_path / "a", SPEC, adapter, model, params=params)
    other = tree.unflatten(flat | {"classifier/kernel": flat["classifier/kernel"] + 1})
    spec, loaded = peft.load(tmp_path / "a", model, other)
    assert spec == SPEC and jax.tree.all(jax.tree.map(np.array_equal, loaded, adapter))
    pooler = tree.unflatten(flat | {"pooler/kernel": flat["pooler/kernel"] + 1})
    refused(
        "made for another base", peft.load, tmp_path / "a", model, pooler, error=CheckpointError
    )
    assert fingerprint(base, params) != fingerprint(base, other)
    # Without copies the head counts.
    plain = peft.LoRA(rank=2, targets=("query",))
    peft.save(tmp_path / "b", plain, peft.init(KEY, plain, model), model, params=params)
    refused("made for another base", peft.load, tmp_path / "b", model, other, error=CheckpointError)


def test_files_that_do_not_fit(bert, tmp_path):
    model, _ = bert
    adapter = fresh(bert)
    peft.save(tmp_path, SPEC, adapter, model)
    five = build(num_labels=5)
    refused(
        r"has shape \[4, 16\] .* ask for \[5, 16\]",
        peft.load,
        tmp_path,
        five,
        error=CheckpointError,
    )
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    # The task alone implies the head, as in PEFT.
    file.write_text(json.dumps(config | {"modules_to_save": None}))
    assert peft.load(tmp_path, model)[0] == SPEC
    file.write_text(json.dumps(config | {"modules_to_save": None, "task_type": None}))
    refused("holds 'base_model.model.classifier", peft.load, tmp_path, model, error=CheckpointError)
    file.write_text(json.dumps(config | {"modules_to_save": ["classifier", "pooler"]}))
    refused(
        "lacks 'base_model.model.bert.pooler", peft.load, tmp_path, model, error=CheckpointError
    )
    short = {"layers": adapter["layers"]}
    refused(
        "lacks 'classifier/kernel' .16, 4.",
        peft.save,
        tmp_path,
        SPEC,
        short,
        model,
        error=CheckpointError,
    )
    plain = peft.LoRA(rank=2, targets=("query",))
    refused(
        "leaf 'classifier/bias' does not",
        peft.save,
        tmp_path,
        plain,
        adapter,
        model,
        error=CheckpointError,
    )


@pytest.mark.parametrize(
    "names, said",
    [
        (("score",), "modules_to_save 'score' matches no module of this BertForSequenceCl"),
        (("classifer",), "'classifer' matches no module"),
        (("pooler", "pooler.dense"), "'bert.pooler.dense' inside 'bert.pooler'; name one"),
        (("layer.1.attention.self.key",), "layer.1.attention.self.key' but not .*scan_layers"),
        (("query",), r"match no layer"),
    ],
)
def test_what_cannot_be_saved(bert, names, said):
    spec = peft.LoRA(rank=2, targets=("query",), modules_to_save=names)
    refused(said, peft.init, KEY, spec, *bert)


def test_tied_tables_and_experts_cannot_be_saved(gpt2):
    for name in ("wte", "lm_head"):
        spec = peft.LoRA(rank=2, targets=("c_attn",), modules_to_save=(name,))
        refused("'lm_head', which shares the table at 'wte'", peft.init, KEY, spec, gpt2.model)
    mixtral = fmjax.build(
        dict(
            model_type="mixtral",
            vocab_size=40,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
            num_experts_per_tok=1,
        )
    )
    for name in ("experts.0.w1", "gate"):
        spec = peft.LoRA(rank=2, targets=("q_proj",), modules_to_save=(name,))
        refused(f"{name}' of a mixture of experts", peft.init, KEY, spec, mixtral)


def test_copies_need_the_params(bert):
    model, params = bert
    refused("start as the base has them; pass params=", peft.init, KEY, SPEC, model)
    less = {k: v for k, v in params.items() if k != "classifier"}
    refused("no array 'classifier/kernel'", peft.init, KEY, SPEC, model, less)
    packed = params | {
        "classifier": {"kernel": (jnp.zeros(3),), "bias": params["classifier"]["bias"]}
    }
    refused("no array 'classifier/kernel'", peft.init, KEY, SPEC, model, packed)


def test_the_heads_of_models():
    def heads(**fields):
        return peft.head_modules(build(**fields))

    assert heads() == heads(architectures=["BertForTokenClassification"]) == ("classifier",)
    questions = dict(architectures=["BertForQuestionAnswering"], num_labels=2)
    assert heads(**questions) == ("qa_outputs",)
    assert heads(architectures=["BertForMaskedLM"]) == ()
    assert peft.head_modules(fmjax.build("gpt2")) == ()


def test_merge_of_the_command_line(bert, tmp_path, capsys):
    from fmjax.cli.merge import Merge

    model, params = bert
    fmjax.save_pretrained(tmp_path / "base", model, params)
    adapter = fresh(bert)
    peft.save(tmp_path / "a", SPEC, adapter, model, params=params)
    Merge(tmp_path / "base", tmp_path / "a", tmp_path / "out").run()
    merged = fmjax.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(
        logits(*merged, {}), logits(model, params, adapter), rtol=0, atol=1e-5
    )
