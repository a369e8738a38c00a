"""A prefix in the key–value cache: the same tokens as without one, updated in place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.generate import decoding, generate
from fmjax.generate.prompts import Prompts

P = 3
VOCAB = 62
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.3,
)
FAMILIES = {
    "gpt2": dict(model_type="gpt2", vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4)
    | dict(n_positions=32, initializer_range=0.3),
    "mistral": SMALL
    | dict(model_type="mistral", intermediate_size=48, num_key_value_heads=2, sliding_window=5),
    "falcon": SMALL
    | dict(model_type="falcon", alibi=True, multi_query=True, new_decoder_architecture=False),
    "falcon with groups": SMALL
    | dict(model_type="falcon", num_kv_heads=2, new_decoder_architecture=True),
}
PROMPTS = [[5, 9, 11, 3, 7, 40, 2], [8, 1], [33]]


@functools.cache
def made(name):
    model = fmjax.build(dict(FAMILIES[name]))
    params = fmjax.init_params(model, jax.random.key(0))
    adapter = peft.init(jax.random.key(1), peft.Prefix(P), model)
    return model, {"params": params, "adapter": adapter}


@functools.partial(jax.jit, static_argnums=0)
def scores(model, variables, ids):
    return model.apply(variables, input_ids=ids).logits


def continued(model, variables, prompt, count):
    """Greedy decoding by whole forward passes, padded behind to one length."""
    ids = list(prompt)
    for _ in range(count):
        padded = np.asarray([ids + [0] * (20 - len(ids))], np.int32)
        ids.append(int(np.asarray(scores(model, variables, padded))[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_of_a_batch_go_on_as_full_passes_do(name):
    model, variables = made(name)
    out = generate(model, variables, PROMPTS, max_new_tokens=9, eos_token_id=())
    expected = [continued(model, variables, prompt, 9) for prompt in PROMPTS]
    np.testing.assert_array_equal(out.tokens, expected)
    bare = generate(
        model, {"params": variables["params"]}, PROMPTS, max_new_tokens=9, eos_token_id=()
    )
    assert (bare.tokens != out.tokens).any()


def test_a_cache_that_was_made_by_a_traced_index_has_the_prefix():
    model, variables = made("mistral")
    ids = jnp.asarray([PROMPTS[0]], jnp.int32)

    @jax.jit
    def decode(index):
        output, _ = model.apply(
            variables,
            input_ids=ids,
            attention_mask=jnp.ones((1, 12), jnp.int32),
            cache_index=index,
            mutable=["cache"],
        )
        return output.logits

    whole = scores(model, variables, ids)
    np.testing.assert_allclose(decode(jnp.int32(0)), whole, rtol=0, atol=1e-4)


def test_positions_are_counted_with_the_prefix():
    model, variables = made("gpt2")
    generate(model, variables, [[1] * 10], max_new_tokens=20, eos_token_id=())
    message = "a prefix of 3, a prompt of 11 tokens and max_new_tokens=20 exceed the model's 32"
    with pytest.raises(fmjax.FmjaxError, match=message):
        generate(model, variables, [[1] * 11], max_new_tokens=20)


@pytest.mark.optimised
@pytest.mark.parametrize("batch", [1, 4])
def test_the_cache_with_a_prefix_is_updated_in_place(batch):
    """No array of the cache's size is copied or joined inside the loop."""
    model = fmjax.build("gpt2", scan_layers=False)  # only its shapes are used
    config = dataclasses.replace(model.config, vocab_size=512, n_layer=2)
    model = model.clone(config=config)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), **model.dummy_inputs())["params"])
    spec = peft.Prefix(20)
    adapter = jax.eval_shape(lambda: peft.init(jax.random.key(0), spec, model))
    prompts = Prompts(ids=np.zeros((batch, 128), np.int32), lengths=np.full(batch, 128, np.int32))
    controls = decoding.Controls(
        numbers={},
        eos=np.zeros(1, np.int32),
        pad=np.int32(0),
        key=None,
        new_slots=128,
        logprobs=False,
    )
    variables = {"params": params, "adapter": adapter}
    text = decoding.run.lower(model, variables, prompts, controls, 9).compile().as_text()
    name = text.split("body=%")[1].split(",")[0].split(" ")[0]
    body = text[text.index(f"\n%{name} (") :].split("\n}")[0].splitlines()[1:]
    results = [line.split(" = ")[-1] for line in body if " = " in line]
    cached = [line for line in results if "276,64]" in line[:30]]
    assert cached
    for line in cached:
        assert " copy(" not in line and " concatenate(" not in line, line
