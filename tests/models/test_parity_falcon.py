"""Falcon against transformers: logits, gradients, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import FalconConfig, FalconForCausalLM

import fmjax
from fmjax.core import logical

# The layouts of query_key_value. Head size 8 unless stated.
NEW = dict(new_decoder_architecture=True, num_kv_heads=2)
CLASSIC = dict(multi_query=False)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}

CASES = {
    "7b": {},
    "40b": NEW,
    "11b": NEW
    | dict(
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=45,
        tie_word_embeddings=False,
        rope_parameters={"theta": 500.0},
    ),
    "rw": CLASSIC | dict(alibi=True, bias=True, parallel_attn=False),
    "one-group-bias-three-layers": NEW | dict(num_kv_heads=1, bias=True, num_hidden_layers=3),
    "a-group-each": NEW | dict(num_kv_heads=None, activation="gelu_pytorch_tanh"),
    "multi-query-serial-untied": dict(
        parallel_attn=False, tie_word_embeddings=False, layer_norm_epsilon=1e-2
    ),
    "multi-query-alibi-six-heads": dict(
        alibi=True, hidden_size=36, num_attention_heads=6, tie_word_embeddings=False
    ),
    "new-alibi": NEW | dict(alibi=True, hidden_size=48, num_attention_heads=6, bias=True),
    "classic-parallel-relu": CLASSIC | dict(bias=True, activation="relu", ffn_hidden_size=20),
    "classic-one-head": CLASSIC | dict(num_attention_heads=1, num_hidden_layers=1),
    "linear": dict(rope_parameters={"rope_type": "linear", "factor": 3.0}),
    "dynamic": NEW
    | dict(rope_parameters={"rope_type": "dynamic", "factor": 3.0}, max_position_embeddings=8),
    "yarn": CLASSIC | dict(rope_parameters=YARN),
    "llama3-serial": dict(rope_parameters=LLAMA3, parallel_attn=False, bias=True),
}
TINY = dict(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
    initializer_range=0.15,
    bos_token_id=1,
    eos_token_id=2,
)


def make(parity, directory, name, dtype="float32"):
    options = TINY | CASES[name]
    rope = dict(options.pop("rope_parameters", {}))
    rope["rope_theta"] = rope.pop("theta", 10000.0)
    config = FalconConfig(**options, rope_parameters={"rope_type": "default"} | rope)
    # The reference's eager attention adds ALiBi's bias twice: to the mask and to the scores.
    attention = "sdpa" if config.alibi else "eager"
    return parity.reference(FalconForCausalLM, config, directory, dtype, attention)


@pytest.mark.parametrize("name", CASES)
def test_logits_greedy_tokens_and_export(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    # ALiBi's places are rounded to bfloat16, which shows beyond 256.
    lengths = {"dynamic": (10, 6), "rw": (10, 300)}.get(name, (10,))
    for length in lengths:
        parity.logits(hf, model, params, length)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)
    # Last, because generating changes the reference's tables of "dynamic" frequencies.
    parity.greedy(hf, model, params)


@pytest.mark.parametrize("name", ["7b", "11b", "rw", "new-alibi"])
def test_unscanned_layers_and_several_files(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    model, params = fmjax.from_pretrained(tmp_path / "hf", scan_layers=False)
    assert "h_0" in params
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["40b", "rw"])
def test_half_precision_keeps_every_bit(parity, tmp_path, name, dtype):
    hf = make(parity, tmp_path / "hf", name, dtype)
    model, params = fmjax.from_pretrained(tmp_path / "hf")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {dtype}
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params, max_shard_size=9000)


@pytest.mark.parametrize("name", ["40b", "rw", "multi-query-serial-untied"])
def test_gradients(parity, tmp_path, name):
    hf = make(parity, tmp_path / "hf", name)
    parity.gradients(hf, *fmjax.from_pretrained(tmp_path / "hf"))


# Groups are split over `tensor`; the single group of multi-query attention is not.
@pytest.mark.parametrize(("name", "shard"), [("40b", (2, 16, 1, 4, 8)), ("7b", (2, 16, 1, 6, 8))])
def test_a_mesh_of_eight(parity, tmp_path, name, shard):
    hf = make(parity, tmp_path / "hf", name)
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    rules = (("vocab", None), ("act_vocab", None), *fmjax.parallel.DEFAULT_RULES)  # 61 is odd
    model, params = fmjax.from_pretrained(tmp_path / "hf", mesh=mesh, rules=rules)
    kernel = params["h"]["self_attention"]["query_key_value"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == shard
    parity.logits(hf, model, params, 10)
    parity.export(hf, tmp_path / "hf", tmp_path / "out", model, params)

    ids = jax.random.randint(jax.random.key(0), (4, 10), 0, 61)
    alone = jax.jit(lambda p: model.apply({"params": p}, ids).logits)(params)
    with logical.use(mesh, rules):
        together = jax.jit(lambda p: model.apply({"params": p}, ids).logits)(params)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_files_as_the_hub_has_them(parity, tmp_path):
    """No prefix, the tied head as a copy, and the frequencies stored as buffers."""
    hf = make(parity, tmp_path, "7b")
    file = tmp_path / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    tensors["lm_head.weight"] = tensors["word_embeddings.weight"].copy()
    for layer in range(2):
        tensors[f"h.{layer}.self_attention.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    parity.logits(hf, *fmjax.from_pretrained(tmp_path), 10)


def tiny(**options):
    """Logits of a random model, as a function of its inputs."""
    model = fmjax.build(TINY | {"model_type": "falcon"} | options)
    params = fmjax.init_params(model, jax.random.key(0))
    return jax.jit(lambda ids, **inputs: model.apply({"params": params}, ids, **inputs).logits)


@pytest.mark.parametrize("alibi", [False, True])
def test_packed_documents_see_only_themselves(alibi):
    logits = tiny(**CLASSIC, alibi=alibi, num_attention_heads=2)
    ids = jax.random.randint(jax.random.key(1), (2, 9), 0, 61)
    segments = jnp.array([[1] * 4 + [2] * 5] * 2)
    positions = jnp.array([[*range(4), *range(5)]] * 2)
    packed = logits(ids, segment_ids=segments, position_ids=positions)
    for part in (slice(0, 4), slice(4, 9)):
        np.testing.assert_allclose(packed[:, part], logits(ids[:, part]), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "acts"),
    [
        (dict(hidden_dropout=0.5), True),
        (dict(attention_dropout=0.5), False),
        (dict(attention_dropout=0.5, parallel_attn=False), True),
        (dict(attention_dropout=0.5, alibi=True), True),
    ],
)
def test_dropout_acts_where_the_reference_has_it(options, acts):
    logits = tiny(**options, num_hidden_layers=1)
    ids = jnp.arange(6)[None]
    trained = logits(ids, rngs={"dropout": jax.random.key(1)})
    assert np.allclose(trained, logits(ids), atol=1e-6) is not acts
