"""Tokens against transformers.generate, and what must not change them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.core.errors import ConfigError
from fmjax.generate import Sampling, decoding, for_decoding, generate
from fmjax.generate.prompts import Prompts

VOCAB = 61
PROMPTS = [[5, 9, 12], [7] * 20, [3, 44, 8, 60, 21, 2, 50], [33]]  # unequal, across two buckets
NEW = 14


def expected(twin, rows, **options):
    """transformers' new tokens [B, N], left-padded there by hand."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0} | options
    with torch.no_grad():
        out = twin.reference.generate(ids, attention_mask=mask, **options)
    return out[:, longest:].numpy()


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_tokens_are_those_of_transformers(twin, penalty):
    theirs = expected(twin, PROMPTS, repetition_penalty=penalty)
    ours = generate(
        twin.model,
        twin.variables,
        PROMPTS,
        max_new_tokens=NEW,
        sampling=Sampling(repetition_penalty=penalty),
        eos_token_id=(),
    )
    np.testing.assert_array_equal(ours.tokens, theirs)
    np.testing.assert_array_equal(ours.lengths, [NEW] * 4)
    assert len(np.unique(theirs)) > 8, "a constant answer would agree with anything"


def test_rows_end_at_any_eos_as_in_transformers(llama):
    free = generate(llama.model, llama.variables, PROMPTS, max_new_tokens=NEW, eos_token_id=())
    eos = [int(free.tokens[0, 4]), int(free.tokens[1, 2])]
    theirs = expected(llama, PROMPTS, eos_token_id=eos)
    ours = generate(
        llama.model, llama.variables, PROMPTS, max_new_tokens=NEW, eos_token_id=eos, pad_token_id=0
    )
    np.testing.assert_array_equal(ours.tokens[:, : theirs.shape[1]], theirs)
    assert not ours.tokens[:, theirs.shape[1] :].any()
    assert ours.lengths[0] <= 5 and ours.lengths[1] <= 3
    for row, length in zip(ours.tokens, ours.lengths, strict=True):
        assert length == NEW or row[length - 1] in eos
        assert not np.isin(row[: length - 1], eos).any() and not row[length:].any()


def test_an_eos_of_the_config_that_the_model_cannot_say_ends_nothing(llama):
    config = llama.model.config.replace(eos_token_id=50256, pad_token_id=-1)
    settings = {"max_new_tokens": 5}
    free = generate(llama.model, llama.variables, PROMPTS, eos_token_id=(), **settings)
    ours = generate(fmjax.build(config), llama.variables, PROMPTS, **settings)
    np.testing.assert_array_equal(ours.tokens, free.tokens)
    with pytest.raises(ConfigError, match="eos_token_id=50256 is outside"):
        generate(llama.model, llama.variables, PROMPTS, eos_token_id=50256, **settings)


def test_the_loop_ends_when_every_row_has(llama):
    free = generate(llama.model, llama.variables, PROMPTS[:2], max_new_tokens=9, eos_token_id=())
    model, variables = for_decoding(llama.model, llama.variables)
    prompts = Prompts(ids=np.array([[5, 9, 12]], np.int32), lengths=np.array([3], np.int32))
    controls = decoding.Controls(
        numbers={},
        eos=free.tokens[0, 2:3],
        pad=np.int32(0),
        key=None,
        new_slots=16,
        logprobs=False,
    )
    state = decoding.run(model, variables, prompts, controls, 16)
    first = free.tokens[0].tolist().index(free.tokens[0, 2])
    assert int(state.step) == int(state.lengths[0]) == first + 1


def test_cached_logits_are_those_of_the_whole_sequence(twin):
    """Prefill of a part, then token by token through the cache, against one pass without."""
    ids = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 11)), jnp.int32)
    whole = jax.jit(twin.model.apply)(twin.variables, ids).logits
    slots = jnp.ones((2, 16), jnp.int32)
    for model, variables in (
        (twin.model, twin.variables),
        for_decoding(twin.model, twin.variables),
    ):
        prefill = jax.jit(
            lambda v, x, m=model: m.apply(
                v, input_ids=x, attention_mask=slots, cache_index=0, mutable=["cache"]
            )
        )
        step = jax.jit(
            lambda v, x, i, m=model: m.apply(
                v, input_ids=x, attention_mask=slots, cache_index=i, mutable=["cache"]
            )
        )
        out, cache = prefill(variables, ids[:, :6])
        logits = [out.logits]
        for i in range(6, 11):
            out, cache = step({**variables, **cache}, ids[:, i : i + 1], i)
            logits.append(out.logits)
        np.testing.assert_allclose(jnp.concatenate(logits, 1), whole, rtol=0, atol=1e-5)


def test_logits_to_keep(twin):
    ids = jnp.asarray([PROMPTS[2]], jnp.int32)
    whole = jax.jit(twin.model.apply)(twin.variables, ids)
    last = jax.jit(twin.model.apply, static_argnames="logits_to_keep")(
        twin.variables, ids, logits_to_keep=2
    )
    np.testing.assert_allclose(last.logits, whole.logits[:, -2:], rtol=0, atol=1e-5)
    assert last.last_hidden_state.shape == whole.last_hidden_state.shape


def test_a_row_does_not_depend_on_the_others_or_on_padding(twin):
    together = generate(twin.model, twin.variables, PROMPTS, max_new_tokens=NEW, eos_token_id=())
    for row, tokens in zip(PROMPTS, together.tokens, strict=True):
        alone = generate(twin.model, twin.variables, [row], max_new_tokens=NEW, eos_token_id=())
        np.testing.assert_array_equal(alone.tokens[0], tokens)
    ids = np.zeros((2, 9), int)
    ids[0, 2:5], ids[1, :7] = PROMPTS[0], PROMPTS[2]
    mask = np.zeros_like(ids)
    mask[0, 2:5] = mask[1, :7] = 1
    padded = generate(
        twin.model,
        twin.variables,
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        eos_token_id=(),
    )
    np.testing.assert_array_equal(padded.tokens, together.tokens[[0, 2]])


def test_sampled_tokens_depend_on_the_key_only(llama):
    def sample(rows, seed, **changes):
        options = {"temperature": 1.5, "top_k": 20, "top_p": 0.9} | changes
        return generate(
            llama.model,
            llama.variables,
            rows,
            max_new_tokens=8,
            sampling=Sampling(**options),
            rng=jax.random.key(seed),
            eos_token_id=(),
        ).tokens

    first = sample(PROMPTS[:1], 0)
    np.testing.assert_array_equal(first, sample(PROMPTS[:1], 0))
    np.testing.assert_array_equal(first[0], sample([PROMPTS[0], [7] * 40], 0)[0])  # another bucket
    assert (first != sample(PROMPTS[:1], 1)).any()
    rows = sample(PROMPTS[:1] * 6, 0)
    assert len({tuple(r) for r in rows.tolist()}) > 1, "equal prompts get different continuations"
    greedy = generate(
        llama.model, llama.variables, PROMPTS[:1], max_new_tokens=8, eos_token_id=()
    ).tokens
    np.testing.assert_array_equal(sample(PROMPTS[:1], 5, top_k=1), greedy)


def test_first_tokens_follow_the_models_distribution(llama):
    out = generate(
        llama.model,
        llama.variables,
        [[5, 9, 12]] * 4000,
        max_new_tokens=1,
        sampling=Sampling(temperature=1.0),
        rng=jax.random.key(0),
    )
    logits = jax.jit(llama.model.apply)(llama.variables, jnp.array([[5, 9, 12]])).logits[0, -1]
    counts = np.bincount(out.tokens[:, 0], minlength=VOCAB) / 4000
    np.testing.assert_allclose(counts, jax.nn.softmax(logits), atol=0.035)


def test_logprobs_are_the_models_own(llama):
    out = generate(
        llama.model,
        llama.variables,
        PROMPTS[:2],
        max_new_tokens=5,
        sampling=Sampling(temperature=2.0, top_k=5),
        rng=jax.random.key(0),
        eos_token_id=(),
        return_logprobs=True,
    )
    for row, tokens, ours in zip(PROMPTS, out.tokens, out.logprobs, strict=False):
        ids = jnp.asarray([row + tokens.tolist()])
        logits = jax.jit(llama.model.apply)(llama.variables, ids).logits[0, len(row) - 1 : -1]
        theirs = jax.nn.log_softmax(logits)[jnp.arange(5), tokens]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_an_adapter_acts_as_its_merged_weights(llama, scan_layers):
    spec = peft.LoRA(rank=4, alpha=32, targets=("q_proj", "down_proj"))  # only some modules
    adapter = peft.init(jax.random.key(0), spec, llama.model, llama.params)
    key = jax.random.key(1)
    adapter = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), adapter)
    merged = peft.merge(llama.model, llama.params, adapter)
    model, variables = llama.model, {"params": llama.params, "adapter": adapter}
    if not scan_layers:
        model, variables = for_decoding(model, variables)
    base = generate(llama.model, llama.variables, PROMPTS, max_new_tokens=8, eos_token_id=())
    ours = generate(model, variables, PROMPTS, max_new_tokens=8, eos_token_id=())
    theirs = generate(llama.model, {"params": merged}, PROMPTS, max_new_tokens=8, eos_token_id=())
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert (ours.tokens != base.tokens).any()


def test_for_decoding_unstacks_and_casts_once(llama):
    model = fmjax.build(llama.model.config, dtype="bfloat16")
    decoder, variables = for_decoding(model, llama.variables)
    params = variables["params"]
    assert "layers" not in params and {"layers_0", "layers_1"} <= set(params)
    assert params["layers_1"]["self_attn"]["q_proj"]["kernel"].dtype == jnp.bfloat16
    assert params["norm"]["scale"].dtype == jnp.float32
    again, same = for_decoding(decoder, variables)
    assert again == decoder and same is variables


def test_bfloat16(llama):
    model = fmjax.build(llama.model.config, dtype="bfloat16")
    out = generate(model, llama.variables, PROMPTS, max_new_tokens=4)
    assert out.tokens.shape == (4, 4) and ((out.tokens >= 0) & (out.tokens < VOCAB)).all()


def test_sharded_parameters_need_nothing_else(llama):
    single = generate(llama.model, llama.variables, PROMPTS, max_new_tokens=6, eos_token_id=())
    from fmjax.models.registry import abstract_params
    from fmjax.parallel import DEFAULT_RULES, param_shardings

    config = dataclasses.replace(llama.model.config, vocab_size=VOCAB)
    rules = (("vocab", None), *DEFAULT_RULES)  # 61 does not divide
    mesh = fmjax.make_mesh(data=1, fsdp=4, tensor=2)
    shardings = param_shardings(abstract_params(fmjax.build(config)), mesh, rules)
    params = jax.device_put(llama.params, shardings)
    sharded = generate(llama.model, {"params": params}, PROMPTS, max_new_tokens=6, eos_token_id=())
    np.testing.assert_array_equal(sharded.tokens, single.tokens)


def test_calls_in_the_same_buckets_share_a_program(llama):
    def call(rows, n, **options):
        return generate(llama.model, llama.variables, rows, max_new_tokens=n, **options)

    call([[1, 2, 3]], 5)
    before = decoding.run._cache_size()
    call([[4] * 16], 16, eos_token_id=9, pad_token_id=3)
    assert decoding.run._cache_size() == before
    call([[4] * 17], 16)
    assert decoding.run._cache_size() == before + 1


@pytest.mark.optimised
# Falcon 7B has one key–value head: with one row, none of the cache's leading axes is left.
@pytest.mark.parametrize(
    ("name", "depth"), [("gpt2", {"n_layer": 2}), ("falcon-7b", {"num_hidden_layers": 2})]
)
def test_the_cache_is_updated_in_place(name, depth):
    """No array of the cache's size is copied inside the loop, whatever the batch."""
    model = fmjax.build(name, scan_layers=False)  # only its shapes are used
    model = model.clone(config=dataclasses.replace(model.config, vocab_size=512, **depth))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), **model.dummy_inputs())["params"])
    for batch in (1, 4):
        prompts = Prompts(
            ids=np.zeros((batch, 128), np.int32), lengths=np.full(batch, 128, np.int32)
        )
        controls = decoding.Controls(
            numbers={},
            eos=np.zeros(1, np.int32),
            pad=np.int32(0),
            key=None,
            new_slots=128,
            logprobs=False,
        )
        compiled = decoding.run.lower(model, {"params": params}, prompts, controls, 9).compile()
        text = compiled.as_text()
        body = text.split("body=%")[1].split(",")[0].split(" ")[0]
        body = text[text.index(f"\n%{body} (") :].split("\n}")[0]
        copies = [line for line in body.splitlines() if "256,64]" in line.split(" = ")[-1][:30]
                  and " copy(" in line]  # fmt: skip
        assert not copies, copies[:3]


def test_the_room_is_callable_and_a_module():
    assert fmjax.generate.generate is generate
    assert callable(fmjax.generate) and fmjax.generate.Sampling is Sampling


def test_an_encoder_does_not_generate():
    model = fmjax.build("bert-base")
    with pytest.raises(fmjax.FmjaxError, match="Bert with head=.masked-lm. does not predict"):
        generate(model, {"params": {}}, [[1, 2]], max_new_tokens=2)
