"""Text from `generate` and `stream`: stop strings, EOS, and the same text from both."""

import jax
import numpy as np
import pytest

from fmjax.core.errors import ConfigError, DataError
from fmjax.generate import Sampling, generate, stream

PROMPTS = [[5, 9, 12], [7] * 20, [3, 44, 8, 60, 21, 2, 50], [33]]


def common(llama):
    return {
        "max_new_tokens": 24,
        "sampling": Sampling(temperature=2.0, repetition_penalty=1.1),
        "rng": jax.random.key(2),
        "eos_token_id": (),
    }


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("stop", [(), ("b",), ("a\n", "bb", " a")])
def test_streamed_text_is_generated_text(llama, bytes_tokenizer, every, stop):
    options = common(llama) | {"stop": stop}
    whole = generate(
        llama.model, llama.variables, PROMPTS[:1], tokenizer=bytes_tokenizer, **options
    )
    out = list(
        stream(llama.model, llama.variables, PROMPTS[0], bytes_tokenizer, every=every, **options)
    )
    assert "".join(out) == whole.texts[0] and all(out)
    assert len(out) > 1 or stop
    assert not any(s in whole.texts[0] for s in stop)


def test_stop_strings_end_each_row_for_itself(llama, bytes_tokenizer):
    free = generate(
        llama.model,
        llama.variables,
        PROMPTS,
        tokenizer=bytes_tokenizer,
        return_logprobs=True,
        **common(llama),
    )
    cut = generate(
        llama.model,
        llama.variables,
        PROMPTS,
        tokenizer=bytes_tokenizer,
        stop="b",
        pad_token_id=0,
        return_logprobs=True,
        **common(llama),
    )
    assert any("b" in text for text in free.texts)
    for i, text in enumerate(free.texts):
        assert cut.texts[i] == text.split("b")[0]
        n = cut.lengths[i]
        np.testing.assert_array_equal(cut.tokens[i, :n], free.tokens[i, :n])
        np.testing.assert_allclose(cut.logprobs[i, :n], free.logprobs[i, :n], rtol=0, atol=1e-5)
        assert not cut.tokens[i, n:].any() and not cut.logprobs[i, n:].any()
        if "b" in text:  # the token that completed the stop string is the last
            assert bytes_tokenizer.decode(cut.tokens[i, n - 1 : n]) == "b"
        else:
            assert n == 24


def test_eos_is_counted_but_not_written(llama, bytes_tokenizer):
    free = generate(llama.model, llama.variables, PROMPTS[:1], max_new_tokens=10, eos_token_id=())
    eos = int(free.tokens[0, 3])
    n = free.tokens[0].tolist().index(eos) + 1
    options = {"max_new_tokens": 10, "eos_token_id": eos, "tokenizer": bytes_tokenizer}
    expected = bytes_tokenizer.decode(free.tokens[0, : n - 1])
    for stop in ((), ("never",)):
        out = generate(llama.model, llama.variables, PROMPTS[:1], stop=stop, **options)
        assert out.lengths.tolist() == [n] and out.tokens[0, n - 1] == eos
        assert out.texts == [expected]
    assert "".join(stream(llama.model, llama.variables, PROMPTS[0], **options)) == expected


def test_one_token_is_a_stream_too(llama, bytes_tokenizer):
    out = generate(
        llama.model, llama.variables, PROMPTS[:1], max_new_tokens=1, tokenizer=bytes_tokenizer
    )
    pieces = stream(llama.model, llama.variables, PROMPTS[0], bytes_tokenizer, max_new_tokens=1)
    assert "".join(pieces) == out.texts[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"sampling": Sampling(temperature=1.0)}, "rng"),
        ({"stop": ""}, "stop=''"),
        ({"stop": ("a", 3)}, "stop="),
        ({"stop": "x"}, "tokenizer"),
        ({"eos_token_id": 61}, "eos_token_id=61"),
        ({"eos_token_id": (1.5,)}, "eos_token_id"),
        ({"pad_token_id": -1}, "pad_token_id=-1"),
        ({"bos_token_id": "<s>"}, "bos_token_id"),
    ],
)
def test_arguments_that_do_not_fit_are_named(llama, options, message):
    with pytest.raises(ConfigError, match=message):
        generate(llama.model, llama.variables, [[1]], **options)


def test_bad_input_to_a_stream_raises_before_the_first_piece(llama, bytes_tokenizer):
    with pytest.raises(DataError, match="token id 99"):
        stream(llama.model, llama.variables, [99], bytes_tokenizer)
    with pytest.raises(ConfigError, match="every=0"):
        stream(llama.model, llama.variables, [1], bytes_tokenizer, every=0)


def test_a_special_token_stops_though_texts_leave_it_out(llama, bytes_tokenizer):
    """Of any tokenizer that tells ids from texts."""
    options = common(llama) | {"max_new_tokens": 8, "tokenizer": bytes_tokenizer}
    free = generate(llama.model, llama.variables, PROMPTS[:1], **options).tokens[0].tolist()
    end = free[3]

    class WithEnd(type(bytes_tokenizer)):
        special_ids = (end,)

        def decode(self, ids, skip_special_tokens=True):
            if not skip_special_tokens:
                return "".join("<|end|>" if i == end else super().decode([i]) for i in ids)
            return super().decode([i for i in ids if i != end])

        def token_to_id(self, token):
            return end  # as of <unk>, for what is no token

        def id_to_token(self, i):
            return "<|end|>"

    options["tokenizer"] = WithEnd()
    out = generate(llama.model, llama.variables, PROMPTS[:1], stop="<|end|>", **options)
    n = free.index(end) + 1
    assert out.tokens[0, : out.lengths[0]].tolist() == free[:n]
    arguments = (llama.model, llama.variables, PROMPTS[0], options.pop("tokenizer"))
    assert "".join(stream(*arguments, stop=("<|end|>", "b"), **options)) in out.texts[0]
    with pytest.raises(ConfigError, match="holds the special token '<|end|>'"):
        stream(*arguments, stop="x<|end|>", **options)


def test_variables_without_params_are_refused(llama):
    with pytest.raises(ConfigError, match="params"):
        generate(llama.model, llama.params, [[1]])


def test_learned_positions_have_an_end(twins):
    gpt2 = twins["gpt2"]
    with pytest.raises(ConfigError, match="20 tokens and max_new_tokens=22 exceed .* 40 positions"):
        generate(gpt2.model, gpt2.variables, [[1], [7] * 20], max_new_tokens=22)
    # Padding to the bucket (32 + 32 slots) does not count, nor the last token, which is not read.
    for prompt, new in ((20, 21), (40, 1)):
        out = generate(gpt2.model, gpt2.variables, [[7] * prompt], max_new_tokens=new,
                       return_logprobs=True)  # fmt: skip
        assert np.isfinite(out.logprobs).all() and out.lengths.tolist() == [new]


def test_an_empty_prompt_needs_a_bos_token(twins, llama):
    gpt2 = twins["gpt2"]  # made without one
    with pytest.raises(DataError, match="prompt 0 is empty"):
        generate(gpt2.model, gpt2.variables, [[]], max_new_tokens=2)
    given = generate(gpt2.model, gpt2.variables, [[]], max_new_tokens=2, bos_token_id=4)
    same = generate(gpt2.model, gpt2.variables, [[4]], max_new_tokens=2)
    np.testing.assert_array_equal(given.tokens, same.tokens)
    own = generate(llama.model, llama.variables, [[]], max_new_tokens=2)
    bos = generate(llama.model, llama.variables, [[1]], max_new_tokens=2)
    np.testing.assert_array_equal(own.tokens, bos.tokens)
