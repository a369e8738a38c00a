"""fmjax against PyTorch on the same shapes: a pair of processes that take turns.

    python benchmarks/vs_torch.py                       # all cases
    python benchmarks/vs_torch.py --case decode-1 --rounds 9

How it is measured stands in `pairs.py`. Needs the `test` extra (torch, transformers, peft). Weights
are random: only shapes matter.
"""

from collections.abc import Callable
from typing import Any

from pairs import main, stepping, torch_stepping

BATCH, LENGTH = 4, 256
PROMPT, NEW = 128, 128
VOCABULARY = 50257
ROWS, WORDS = 8, 128
BERT_VOCABULARY, MASK = 30522, 103

CASES = {
    "train": ("GPT-2 small training step, batch 4 × 256, f32, no dropout", "s", 1.0, 1.0),
    "lora": ("the same with LoRA r=8 on c_attn, against peft", "s", 1.0, 0.8),
    "mlm": ("BERT-base masked-LM step, batch 8 × 128, f32, dropout 0.1", "s", 1.0, 1.0),
    "mlm-plain": ("the same without dropout", "s", 1.0, 1.0),
    "classify": ("MiniLM-L6 classification step, batch 32 × 64, f32, dropout 0.1", "s", 1.0, 1.0),
    "decode-1": ("GPT-2 small, 128 new tokens after 128, batch 1", "ms/token", 1e3 / NEW, 0.6),
    "decode-8": ("GPT-2 small, 128 new tokens after 128, batch 8", "ms/token", 1e3 / NEW, 0.7),
}


# Case → rows and tokens of its batch.
ENCODERS = {"mlm": (ROWS, WORDS), "mlm-plain": (ROWS, WORDS), "classify": (32, 64)}


def fmjax_side(case: str) -> tuple[Callable[[], Any], float | None]:
    """A call to time, and the compiler's peak in bytes where one program is the whole call."""
    import jax

    import fmjax
    from fmjax.models.gpt2.config import GPT2Config

    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, eos_token_id=None)
    if case.startswith("decode"):
        model = fmjax.build(config)
        params = fmjax.init_params(model, jax.random.key(0))
        rows = int(case.split("-")[1])
        prompt = jax.random.randint(jax.random.key(1), (rows, PROMPT), 0, VOCABULARY)
        prompts = [[int(i) for i in row] for row in prompt]

        def decode() -> None:
            out = fmjax.generate(model, {"params": params}, prompts, max_new_tokens=NEW)
            assert out.tokens.shape == (rows, NEW)

        return decode, None

    from fmjax.train import adamw, make_step

    if case in ENCODERS:
        return fmjax_encoder(case)

    from fmjax.objectives import CausalLM

    # Saving the matmuls and recomputing what lies between them is the faster choice on a CPU,
    # where elementwise work is cheap beside the traffic of storing its results.
    model = fmjax.build(config, remat="dots")
    variables = {"params": fmjax.init_params(model, jax.random.key(0))}
    if case == "lora":
        spec = fmjax.peft.LoRA(rank=8, alpha=16, targets=("c_attn",))
        variables["adapter"] = fmjax.peft.init(jax.random.key(2), spec, model)
    step = make_step(model, CausalLM(), adamw(1e-4, weight_decay=0.01))
    ids = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, VOCABULARY)
    return stepping(step, variables, {"input_ids": ids})


def encoder_config(case: str) -> dict[str, Any]:
    """Fields in which a case's encoder differs from bert-base-uncased; the same on both sides."""
    if case == "classify":
        return {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    rate = 0.1 if case == "mlm" else 0.0
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


def fmjax_encoder(case: str) -> tuple[Callable[[], Any], float]:
    import jax

    import fmjax
    from fmjax.models.bert.config import BertConfig
    from fmjax.objectives import MaskedLM, SequenceClassification
    from fmjax.train import adamw, make_step

    masked = case != "classify"
    head = "masked-lm" if masked else "sequence-classification"
    model = fmjax.build(BertConfig(head=head, **encoder_config(case)))
    variables = {"params": fmjax.init_params(model, jax.random.key(0))}
    objective = MaskedLM(MASK, BERT_VOCABULARY) if masked else SequenceClassification()
    step = make_step(model, objective, adamw(1e-4, weight_decay=0.01))
    rows = ENCODERS[case]
    ids = jax.random.randint(jax.random.key(1), rows, 1000, BERT_VOCABULARY)
    batch = {"input_ids": ids, "attention_mask": jax.numpy.ones(rows, "int32")}
    if not masked:
        batch["labels"] = jax.random.randint(jax.random.key(2), rows[:1], 0, 2)
    return stepping(step, variables, batch)


def torch_side(case: str) -> tuple[Callable[[], Any], float | None]:
    """The same work as a user of PyTorch writes it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if case in ENCODERS:
        return torch_encoder(case)
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    if case.startswith("decode"):
        model.eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        ids = torch.randint(0, VOCABULARY, (int(case.split("-")[1]), PROMPT))
        mask = torch.ones_like(ids)

        def decode() -> None:
            out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
            assert out.shape == (len(ids), PROMPT + NEW)

        return decode, None

    if case == "lora":
        import peft

        lora = peft.LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["c_attn"],
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, lora)
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    return torch_stepping(model, lambda: model(input_ids=ids, labels=ids).loss), None


def torch_encoder(case: str) -> tuple[Callable[[], Any], None]:
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    masked = case != "classify"
    kind = BertForMaskedLM if masked else BertForSequenceClassification
    model = kind(BertConfig(**encoder_config(case)))
    rows = ENCODERS[case]
    ids = torch.randint(1000, BERT_VOCABULARY, rows)
    mask = torch.ones_like(ids)
    if not masked:
        labels = torch.randint(0, 2, rows[:1])
        return torch_stepping(
            model, lambda: model(input_ids=ids, attention_mask=mask, labels=labels).loss
        ), None

    def masked_loss() -> Any:
        # As DataCollatorForLanguageModeling hides tokens: 15 %, of these 80 / 10 / 10.
        chosen = torch.rand(rows) < 0.15
        fate = torch.rand(rows)
        hidden = torch.where(fate < 0.9, torch.randint(0, BERT_VOCABULARY, rows), ids)
        hidden = torch.where(fate < 0.8, MASK, hidden)
        labels = torch.where(chosen, ids, -100)
        inputs = torch.where(chosen, hidden, ids)
        return model(input_ids=inputs, attention_mask=mask, labels=labels).loss

    return torch_stepping(model, masked_loss), None


if __name__ == "__main__":
    main(__doc__.splitlines()[0], CASES, fmjax_side, torch_side)
