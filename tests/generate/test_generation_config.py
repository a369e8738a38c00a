import json

import numpy as np
import pytest

import fmjax
from fmjax.cli.generate import Generate
from fmjax.core.errors import ConfigError
from fmjax.generate import GenerationConfig, Sampling, generate


def write(directory, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "generation_config.json").write_text(text)
    return directory


def test_a_sampling_file(tmp_path):
    content = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "max_new_tokens": 7,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 0,
        "stop_strings": "\n\n",
        "transformers_version": "5.23.0",
        "num_beams": 1,
        "max_length": 4096,
    }
    config = GenerationConfig.from_dir(write(tmp_path, content))
    assert config.arguments() == {
        "sampling": Sampling(0.6, top_k=50, top_p=0.9, min_p=0.1, repetition_penalty=1.1),
        "max_new_tokens": 7,
        "bos_token_id": 1,
        "eos_token_id": (2, 3),
        "pad_token_id": 0,
        "stop": ("\n\n",),
    }


def test_without_do_sample_only_the_penalty_counts():
    content = {"temperature": 0.6, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.1}
    assert GenerationConfig.from_hf(content).sampling == Sampling(repetition_penalty=1.1)


def test_explicit_null_and_zero_switch_off():
    config = GenerationConfig.from_hf({"do_sample": True, "top_k": 0, "top_p": None})
    assert config.sampling == Sampling(temperature=1.0)


def test_no_file_leaves_everything_to_the_model(tmp_path):
    assert GenerationConfig.from_dir(tmp_path).arguments() == {"sampling": Sampling()}


def test_older_checkpoints_have_their_settings_in_the_model_config(twins, tmp_path):
    """As transformers reads them, also after an export."""
    import torch
    import transformers

    gpt2 = twins["gpt2"]
    gpt2.reference.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "generation_config.json").unlink()
    file = tmp_path / "old" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.7}))
    settings = GenerationConfig.from_dir(tmp_path / "old").arguments()
    assert settings["sampling"] == Sampling(repetition_penalty=1.7)
    model, params = fmjax.from_pretrained(tmp_path / "old")
    ids = [[5, 9, 5, 12]]
    ours = generate(model, {"params": params}, ids, max_new_tokens=12, **settings).tokens
    assert (ours != generate(model, {"params": params}, ids, max_new_tokens=12).tokens).any()
    fmjax.save_pretrained(tmp_path / "new", model, params, carry_from=tmp_path / "old")
    for name in ("old", "new"):
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / name).eval()
        out = theirs.generate(torch.tensor(ids), max_new_tokens=12, pad_token_id=0)
        np.testing.assert_array_equal(out[:, 4:].numpy(), ours)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"no_repeat_ngram_size": 2}))
    with pytest.raises(ConfigError, match="config.json: no_repeat_ngram_size=2 is not supported"):
        GenerationConfig.from_dir(tmp_path / "old")


def test_arguments_are_those_of_generate(llama, tmp_path):
    content = {"max_new_tokens": 3, "eos_token_id": 60}
    arguments = GenerationConfig.from_dir(write(tmp_path, content)).arguments()
    out = generate(llama.model, llama.variables, [[5]], **arguments)
    plain = generate(llama.model, llama.variables, [[5]], max_new_tokens=3, eos_token_id=60)
    np.testing.assert_array_equal(out.tokens, plain.tokens)


def test_it_agrees_with_the_file_that_transformers_writes(tmp_path):
    from transformers import GenerationConfig as Reference

    Reference(do_sample=True, temperature=0.8, top_p=0.95, eos_token_id=[4, 5]).save_pretrained(
        tmp_path
    )
    config = GenerationConfig.from_dir(tmp_path)
    assert config.sampling == Sampling(0.8, top_k=50, top_p=0.95)
    assert config.eos_token_id == (4, 5)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"suppress_tokens": [1]}, "suppress_tokens"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0"),
        ({"do_sample": True, "top_p": 2.0}, "top_p=2.0"),
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig.from_dir(write(tmp_path, content))


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="not a directory"):
        GenerationConfig.from_dir(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", [{"max_new_tokens": "x"}, {"eos_token_id": [1, 2.0]}, {"stop_strings": 5}]
)
def test_values_of_another_kind_are_named(content):
    with pytest.raises(ConfigError, match=f"{next(iter(content))}=.* must be"):
        GenerationConfig.from_hf(content)


def test_the_command_takes_the_models_number_of_tokens(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 8}')
    assert Generate(model=tmp_path)._settings()["max_new_tokens"] == 8
    assert Generate(model=tmp_path, max_new_tokens=3)._settings()["max_new_tokens"] == 3
