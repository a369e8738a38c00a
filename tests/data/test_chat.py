"""Conversations: read, encoded with a mask on the answers, packed."""

import gzip
import json
import re

import numpy as np
import pytest
import transformers

from fmjax.core.errors import DataError, TokenizerError
from fmjax.data import (
    DEFAULT_TEMPLATE,
    HFTokenizer,
    SentencePieceTokenizer,
    chat_batches,
    chat_documents,
    chat_eval_batches,
    encode_chat,
    load_tokenizer,
    use_default_template,
)
from fmjax.data import chat as templates
from fmjax.data.tasks import read_conversations

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


@pytest.fixture
def plain(tokenizer, tmp_path):
    """The tokenizer without a chat template."""
    tokenizer.save(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(tmp_path / "plain")


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


# Files.


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": ASKED}, ASKED),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            ASKED,
        ),
        ({"prompt": "q", "completion": "a"}, ASKED),
        ({"prompt": ASKED[:1], "completion": ASKED[1:]}, ASKED),
        ({"instruction": "q", "output": "a"}, ASKED),
        ({"instruction": "q", "input": "", "output": "a"}, ASKED),
        (
            {"instruction": "q", "input": "i", "output": "a"},
            [{"role": "user", "content": "q\n\ni"}, ASKED[1]],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASKED[1]]},
         ASKED),
    ],
)  # fmt: skip
def test_forms(row, expected, tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz"):
        data = read_conversations(write(tmp_path / name, row))
        assert data.messages == [expected] and data.where(0).endswith(f"{name}, line 1")


def test_rows_without_an_answer_are_counted(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        {"messages": ASKED[:1]},
        {"messages": ASKED},
        {"prompt": "q", "completion": " "},
    )
    data = read_conversations(file)
    assert len(data) == 1 and data.where(0).endswith("line 2")
    assert str(data.report) == (
        "1 of 3 rows; left out: 1 with an empty message; 1 without an answer of the assistant"
    )
    assert data.keys() == [("q",)] and data.select([0]).messages == [ASKED]
    with pytest.raises(DataError, match="no conversation is left .*give at least one"):
        read_conversations(write(tmp_path / "b.jsonl", {"messages": ASKED[:1]}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no conversation among the fields text; write messages"),
        ({"messages": []}, '"messages" holds an empty list; write a list'),
        ({"messages": "hi"}, '"messages" holds a str; write a list'),
        ({"messages": [*ASKED, "x"]}, '"messages", message 3: not an object'),
        ({"messages": [{"role": "user"}]}, 'message 1: no "content"; it has role'),
        ({"messages": [{"role": "king", "content": "x"}]}, "the role is 'king'; use one of system"),
        ({"conversations": [{"from": "dog", "value": "x"}]}, "the from is 'dog'; use one of human"),
        ({"prompt": 3, "completion": "a"}, '"prompt" holds int, not text; write a string'),
        ({"instruction": "q", "output": None}, '"output" holds null, not text'),
    ],
)
def test_broken_rows_are_named(row, message, tmp_path):
    file = write(tmp_path / "a.jsonl", {"messages": ASKED}, row)
    with pytest.raises(DataError, match=f"a.jsonl, line 2.*{message}"):
        read_conversations(file)


# Packing.


@pytest.fixture
def documents(plain, texts):
    use_default_template(plain)
    words = texts[0].split()
    talks = [
        [
            {"role": "user", "content": " ".join(words[i : i + 2])},
            {"role": "assistant", "content": " ".join(words[i + 2 : i + 4 + i % 3])},
        ]
        for i in range(40)
    ]
    return chat_documents(talks, plain, 48)


def test_packed_conversations_are_whole_and_apart(documents):
    batches = chat_batches(documents, batch_size=2, sequence_length=64, epochs=1, prefetch=0)
    seen = []
    for batch in batches:
        assert {k: x.shape for k, x in batch.items()} == dict.fromkeys(
            ("input_ids", "segment_ids", "position_ids", "labels"), (2, 64)
        )
        for ids, segments, positions, labels in zip(*batch.values(), strict=True):
            for segment in range(1, segments.max() + 1):
                part = segments == segment
                np.testing.assert_array_equal(positions[part], np.arange(part.sum()))
                answers = labels[part] != -100
                np.testing.assert_array_equal(labels[part][answers], ids[part][answers])
                seen.append((tuple(ids[part]), tuple(answers)))
            assert (labels[segments == 0] == -100).all()
    expected = [
        (tuple(documents.tokens[i]), tuple(documents.answers[i] > 0)) for i in range(len(documents))
    ]
    assert sorted(seen) == sorted(expected) and seen != expected
    assert max(np.max(b["segment_ids"]) for b in chat_eval_batches(
        documents, batch_size=2, sequence_length=64)) > 1  # fmt: skip


def test_packed_batches_resume(documents):
    options = {"batch_size": 2, "sequence_length": 64, "seed": 3}
    first = chat_batches(documents, **options)
    for _ in range(11):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    wanted = [next(first) for _ in range(12)]  # into the next epoch
    second = chat_batches(documents, **options)
    second.set_state(state)
    for batch in wanted:
        again = next(second)
        assert all((again[k] == batch[k]).all() for k in batch)
    other = chat_batches(documents, **options | {"seed": 4})
    with pytest.raises(DataError, match="seed was 3, is 4"):
        other.set_state(state)


def test_conversations_beyond_the_length(plain):
    use_default_template(plain)
    long = [{"role": "user", "content": "in the beginning " * 40}, ASKED[1]]
    found = chat_documents([long, TALK, ASKED], plain, 70)
    assert (found.kept, found.truncated, found.lost) == ((1, 2), 1, 1)
    assert "2 conversations, 1 cut at 70 tokens; 1 left out, as no answer begins" in str(found)
    with pytest.raises(DataError, match="within 70 tokens none of 1 conversations.*raise"):
        chat_documents([long], plain, 70)
    with pytest.raises(DataError, match="do not fit into rows of 32; encode them with max_length"):
        chat_batches(found, batch_size=1, sequence_length=32)
