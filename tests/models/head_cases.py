"""Decoders of transformers under each of their heads, and what it takes to compare twins here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import transformers

ATOL = 1e-4
FIELDS = ("logits", "start_logits", "end_logits", "last_hidden_state")

AUTO = {
    None: "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "causal-lm": "AutoModelForCausalLM",
}

_GPT2 = dict(n_embd=32, n_head=4, n_layer=2, n_positions=16)
_LLAMA = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=44)
_FALCON = {k: v for k, v in _LLAMA.items() if k != "intermediate_size"}
# family → (names of classes begin with, options)
FAMILIES = {
    "gpt2": ("GPT2", _GPT2),
    "llama": ("Llama", _LLAMA | dict(num_key_value_heads=2)),
    "mistral": ("Mistral", _LLAMA | dict(num_key_value_heads=1, sliding_window=4)),
    "falcon": ("Falcon", _FALCON | dict(new_decoder_architecture=True, num_kv_heads=2)),
    "qwen2": ("Qwen2", _LLAMA | dict(num_key_value_heads=2)),
    "qwen3": ("Qwen3", _LLAMA | dict(num_key_value_heads=2, head_dim=16)),
    "gemma": ("Gemma", _LLAMA | dict(num_key_value_heads=1, head_dim=12)),
    "gemma2": ("Gemma2", _LLAMA | dict(num_key_value_heads=2, head_dim=8, sliding_window=4)),
    "mixtral": ("Mixtral", _LLAMA | dict(num_key_value_heads=2, num_local_experts=3)),
}

_CLASSES, _TAGS, _SPANS = (head for head in AUTO if head not in (None, "causal-lm"))
# What makes a case differ from the others: labels, ties, dropouts, biases.
_ODD = {
    ("gpt2", _CLASSES): dict(num_labels=1, problem_type="regression"),
    ("gpt2", _TAGS): dict(id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}),
    ("llama", _CLASSES): dict(num_labels=5, tie_word_embeddings=True, attention_bias=True),
    ("mistral", _CLASSES): dict(id2label={0: "no", 1: "yes"}),
    ("mistral", _TAGS): dict(num_labels=7, classifier_dropout=0.3),
    ("falcon", _CLASSES): dict(num_labels=3, bias=True),
    ("falcon", _TAGS): dict(new_decoder_architecture=False, multi_query=True, alibi=True),
    ("falcon", _SPANS): dict(num_labels=4, new_decoder_architecture=False, parallel_attn=False),
    ("qwen2", _CLASSES): dict(num_labels=1, problem_type="regression", num_hidden_layers=1),
    ("qwen2", _TAGS): dict(num_labels=3, tie_word_embeddings=True),
    ("qwen3", _CLASSES): dict(num_labels=3, problem_type="multi_label_classification"),
    ("gemma", _CLASSES): dict(num_labels=4),
    ("gemma2", _CLASSES): dict(num_labels=3, problem_type="single_label_classification"),
    ("mixtral", _CLASSES): dict(num_labels=3, num_hidden_layers=3),
}
CASES = [
    (family, head)
    for family in FAMILIES
    for head in AUTO
    if head != "causal-lm" and not (head == _SPANS and family.startswith("gemma"))
]


def make(parity, directory, family, head, dtype="float32", **others):
    """A random model of transformers, saved in `directory`."""
    name, options = FAMILIES[family]
    options = (
        {"vocab_size": parity.vocab, "initializer_range": 0.15, "pad_token_id": 0}
        | ({} if family == "gpt2" else {"max_position_embeddings": 32})
        | options
        | _ODD.get((family, head), {})
        | others
    )
    config = getattr(transformers, f"{name}Config")(**options)
    cls = getattr(transformers, AUTO[head])._model_mapping[type(config)]
    return parity.reference(cls, config, directory, dtype, _attention(config))


def _attention(config):
    # Falcon's eager attention adds ALiBi's bias twice: to the mask and to the scores.
    return "sdpa" if getattr(config, "alibi", False) else "eager"


def ragged(vocab, length=10):
    """Rows that are full, padded on the right and on the left; no token is the padding's."""
    ids = np.random.default_rng(1).integers(3, vocab, (3, length))
    mask = np.ones_like(ids)
    mask[1, -length // 3 :] = 0
    mask[2, : length // 4] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def theirs(hf, inputs):
    import torch

    with torch.no_grad():
        out = hf(**{k: torch.tensor(v) for k, v in inputs.items()}, output_hidden_states=True)
    found = {name: out[name].float().numpy() for name in FIELDS if name in out}
    return found | {f"hidden_states[{i}]": h.numpy() for i, h in enumerate(out["hidden_states"])}


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, inputs):
    return model.apply({"params": params}, **inputs, output_hidden_states=True)


def ours(model, params, inputs):
    return apply(model, params, {k: jnp.asarray(v, jnp.int32) for k, v in inputs.items()})


def compare(hf, model, params, inputs):
    """Every field of the reference's output where there are tokens."""
    expected, out = theirs(hf, inputs), ours(model, params, inputs)
    hidden = {f"hidden_states[{i}]": h for i, h in enumerate(out.hidden_states)}
    token = inputs.get("attention_mask", np.ones_like(inputs["input_ids"])).astype(bool)
    assert {"logits", "start_logits"} & expected.keys() or model.config.head is None
    for name, value in expected.items():
        got = np.asarray(hidden[name] if name in hidden else getattr(out, name))
        assert got.shape == value.shape and got.dtype == np.float32, name
        assert np.abs(value).max() > 0.05, f"{name}: near zero would agree with anything"
        if got.shape[:2] == token.shape:
            got, value = got[token], value[token]
        np.testing.assert_allclose(got, value, rtol=0, atol=ATOL, err_msg=name)


def reload(directory, hf, head):
    """The export in transformers' class for the task: nothing missing, unexpected or new."""
    again, info = getattr(transformers, AUTO[head]).from_pretrained(
        directory, attn_implementation=_attention(hf.config), output_loading_info=True
    )
    assert type(again) is type(hf) and not any(info.values()), info
    return again.eval()
