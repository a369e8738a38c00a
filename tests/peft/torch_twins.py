"""Small random models of many kinds in transformers, and the same ones here."""

import functools
from types import SimpleNamespace

import numpy as np

import fmjax

# transformers' class → fields of its config.
SMALL = dict(vocab_size=50, initializer_range=0.2)
BERT = dict(
    hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4, num_labels=3
)
MODELS = {
    "GPT2LMHeadModel": dict(n_embd=32, n_layer=2, n_head=4, n_positions=16),
    "LlamaForCausalLM": dict(
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    ),
    "FalconForCausalLM": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        bias=True,
    ),
    "BertForMaskedLM": BERT,
    "BertForSequenceClassification": BERT,
    "RobertaForTokenClassification": BERT,
    "GemmaForCausalLM": dict(
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
    ),
    "MistralForCausalLM": dict(
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    ),
    "LlamaForSequenceClassification": dict(
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=3,
        pad_token_id=0,
    ),
    "BertForQuestionAnswering": BERT | dict(num_labels=2),
    "BertForTokenClassification": BERT,
    "RobertaForSequenceClassification": BERT,
    "MixtralForCausalLM": dict(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    ),
}
TASKS = {
    "CausalLM": "CAUSAL_LM",
    "LMHead": "CAUSAL_LM",
    "Sequence": "SEQ_CLS",
    "Token": "TOKEN_CLS",
    "Question": "QUESTION_ANS",
}
IDS = np.random.default_rng(1).integers(2, 50, (2, 7))
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3])


@functools.cache
def make(name, directory, **fields):
    """A model of transformers saved in `directory`, the same here, and PEFT's task for it."""
    import torch
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    fields = SMALL | dict(max_position_embeddings=16) | MODELS[name] | fields
    cls(cls.config_class(**fields)).save_pretrained(directory)
    model, params = fmjax.from_pretrained(directory)

    # The eager implementation of the reference adds ALiBi twice.
    attention = "sdpa" if fields.get("alibi") else "eager"

    def reference():
        return cls.from_pretrained(directory, attn_implementation=attention).eval()

    task = next((task for part, task in TASKS.items() if part in name), None)
    return SimpleNamespace(
        dir=directory, model=model, params=params, reference=reference, task=task
    )


def move(model, size=0.3):
    """Pretends a training of a PEFT model."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return model


def real(logits):
    """Only of tokens, where there is an answer for each."""
    return logits[MASK.astype(bool)] if logits.ndim == 3 else logits
