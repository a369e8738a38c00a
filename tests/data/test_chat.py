"""Conversations as tokens with a mask on the answers."""

import re

import pytest
import transformers

from fmjax.core.errors import TokenizerError
from fmjax.data import (
    DEFAULT_TEMPLATE,
    HFTokenizer,
    SentencePieceTokenizer,
    encode_chat,
    use_default_template,
)
from fmjax.data import chat as templates

TALK = [
    {"role": "system", "content": "Answer from the book."},
    {"role": "user", "content": "  Who begat Isaac?\n"},
    {"role": "assistant", "content": "Abraham begat Isaac."},
    {"role": "user", "content": "And Jacob?"},
    {"role": "assistant", "content": "Isaac begat Jacob."},
]
UNMARKED = re.sub(r"{% (end)?generation %}", "", DEFAULT_TEMPLATE)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
    "{%- generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %} {{ m.content }}{% endif %}{% endfor %}"
)


def with_template(tokenizer, source):
    tokenizer.config["chat_template"] = {"default": source}
    return tokenizer


def learnt(tokenizer, chat) -> str:
    ids = [i for i, answer in zip(chat.ids, chat.answers, strict=True) if answer]
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, MARKED])
@pytest.mark.parametrize("kind", ["spm", "json"])
def test_the_mask_is_transformers(plain, template, kind, tmp_path):
    with_template(plain, template).save(tmp_path / "t")
    ours = {"spm": SentencePieceTokenizer.load, "json": HFTokenizer.load}[kind](tmp_path / "t")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    expected = theirs.apply_chat_template(
        TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    got = encode_chat(ours, TALK)
    assert got.ids == expected["input_ids"]
    assert got.answers == expected["assistant_masks"]
    assert 0 < sum(got.answers) < len(got.ids) and not got.truncated


def test_what_is_learnt_is_the_answers_and_their_ends(plain, tokenizer):
    assert use_default_template(plain) and not use_default_template(plain)
    eos = plain.eos_token
    said = learnt(plain, encode_chat(plain, TALK))
    assert said.replace(" ", "") == f"AbrahambegatIsaac.{eos}IsaacbegatJacob.{eos}"
    assert encode_chat(plain, TALK).ids == plain.apply_chat_template(TALK)
    # The same without marks in the template: by what a message adds to those before it.
    text, spans = templates.answers(UNMARKED, TALK, eos_token=eos)
    assert [text[a:b] for a, b in spans] == [
        f"Abraham begat Isaac.{eos}\n",
        f"Isaac begat Jacob.{eos}\n",
    ]
    # A tokenizer's own template.
    assert "Abraham begat Isaac." in learnt(tokenizer, encode_chat(tokenizer, TALK))
    assert "Answer" not in learnt(tokenizer, encode_chat(tokenizer, TALK))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (  # ChatML
            "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}"
            "{{ '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
            ["Abraham begat Isaac.<|im_end|>\n", "Isaac begat Jacob.<|im_end|>\n"],
        ),
        (  # as LLaMA 2's, without a header of the assistant's turn
            "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token ~ '[INST] ' ~ m.content "
            "~ ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' ~ m.content ~ ' ' ~ eos_token }}"
            "{% endif %}{% endfor %}",
            [" Abraham begat Isaac. </s>", " Isaac begat Jacob. </s>"],
        ),
    ],
    ids=["chatml", "inst"],
)
def test_templates_without_marks(template, expected):
    text, spans = templates.answers(template, TALK, bos_token="<s>", eos_token="</s>")
    assert [text[a:b] for a, b in spans] == expected


def test_a_prompt_for_generation_is_how_training_begins(plain):
    use_default_template(plain)
    prompt = plain.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)
    assert plain.apply_chat_template(TALK, tokenize=False).startswith(prompt)
    assert prompt.endswith("<|user|>\nWho begat Isaac?\n<|assistant|>\n")


def test_the_default_template_is_saved_for_transformers(plain, tmp_path):
    use_default_template(plain)
    plain.save(tmp_path / "t")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    kwargs = {"tokenize": False, "add_generation_prompt": True}
    assert theirs.apply_chat_template(TALK, **kwargs) == plain.apply_chat_template(TALK, **kwargs)


def test_cutting_and_context(plain):
    use_default_template(plain)
    whole = encode_chat(plain, TALK)
    cut = encode_chat(plain, TALK, 30)
    assert cut.truncated and cut.ids == whole.ids[:30] and cut.answers == whole.answers[:30]
    last = encode_chat(plain, TALK, context=4)
    said = learnt(plain, last).replace(" ", "")
    assert last.ids == whole.ids and said == "IsaacbegatJacob." + plain.eos_token


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (  # drops what was thought in earlier turns
            "{% for m in messages %}[{{ m.role }}]{{ m.content if loop.last else '-' }}"
            "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
            TALK,
            "message 2: the chat template writes earlier messages differently.*{% generation %}",
        ),
        (UNMARKED, TALK[2:], "begins with an answer"),
        (MARKED.replace("m.role ==", "loop.last and m.role =="), TALK, "1 {% generation %} blocks"),
        (
            "{% set x %}{% generation %} a {% endgeneration %}{% endset %}{{ x | upper }}"
            "{{ x | length }}",
            TALK,
            "changes the text of its {% generation %} blocks",
        ),
        (MARKED, [{"role": "user", "content": "\ufdd0"}], "U.FDD0.*remove it"),
    ],
)
def test_templates_that_hide_their_answers(template, messages, message):
    with pytest.raises(TokenizerError, match=message):
        templates.answers(template, messages, eos_token="</s>")


def test_no_template_and_no_eos(plain):
    with pytest.raises(TokenizerError, match="no chat template"):
        encode_chat(plain, TALK)
    plain.config["eos_token"] = None
    with pytest.raises(TokenizerError, match="neither a chat template nor an EOS token"):
        use_default_template(plain)
