"""Preferences: read, encoded with labels on the answers, batches of both sides."""

import json

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks import (
    preference_batches,
    preference_eval_batches,
    preference_features,
    read_preferences,
)

ASK = [{"role": "user", "content": "Who begat Isaac?"}]
GOOD = [{"role": "assistant", "content": "Abraham."}]
BAD = [{"role": "assistant", "content": "Jacob did beget him."}]


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who begat Isaac?", "chosen": "Abraham.", "rejected": "Jacob did beget him."},
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"chosen": ASK + GOOD, "rejected": ASK + BAD},
    ],
)
def test_forms(row, write):
    data = read_preferences(write(row))
    assert (data.prompts, data.chosen, data.rejected) == ([ASK], [GOOD], [BAD])
    assert data.where(0).endswith("pairs.jsonl, line 1") and data.keys() == [("Who begat Isaac?",)]


def test_rows_from_which_nothing_follows_are_counted(write):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    data = read_preferences(write(row | {"chosen": "b"}, row | {"rejected": ""}, row))
    assert len(data) == 1 and data.where(0).endswith("line 3")
    assert "1 with an empty message; 1 whose answers are the same" in str(data.report)
    with pytest.raises(DataError, match="no pair of answers is left.*give at least one"):
        read_preferences(write(row | {"chosen": "b"}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, 'no field "rejected"; it has prompt, chosen; write'),
        ({"chosen": "a", "rejected": "b"}, 'texts and there is no field "prompt"; write the'),
        ({"chosen": GOOD, "rejected": BAD}, "no message before the answers; write the prompt"),
        ({"prompt": "q", "chosen": ASK, "rejected": BAD}, '"chosen" goes on.*message of the user'),
        ({"prompt": 1, "chosen": "a", "rejected": "b"}, '"prompt" holds int, not text'),
    ],
)
def test_broken_rows_are_named(row, message, write):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=f"pairs.jsonl, line 2: .*{message}"):
        read_preferences(write(good, row))


@pytest.fixture
def features(write, tokenizer):
    history = [*ASK, *BAD, {"role": "user", "content": "Really?"}]
    rows = [{"prompt": history, "chosen": GOOD, "rejected": BAD}]
    rows += [
        {"prompt": "who is " + "he " * i, "chosen": "yes " * (i + 1), "rejected": "no"}
        for i in range(5)
    ]
    return preference_features(read_preferences(write(*rows)), tokenizer, 64)


def test_only_the_answers_compared_have_labels(features, tokenizer):
    first = features[0]
    for ids, labels, answer in zip(*first.values(), (GOOD, BAD), strict=True):
        learnt = [i for i in labels if i != -100]
        assert ids[-len(learnt) :] == learnt
        said = tokenizer.decode(learnt, skip_special_tokens=False).replace(" ", "")
        assert said.startswith(answer[0]["content"].replace(" ", "") + tokenizer.eos_token)
    assert str(features) == "6 pairs, none longer than 64 tokens"


def test_batches_have_both_sides_and_resume(features, tokenizer):
    features = features.with_reference(np.arange(6.0), -np.arange(6.0))
    options = {"pad_id": tokenizer.pad_token_id or 0, "max_length": 64}
    batches = preference_batches(features, 4, **options)
    next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    batch = next(batches)
    T = batch["chosen_input_ids"].shape[1]
    for side in ("chosen", "rejected"):
        for name in ("input_ids", "labels", "attention_mask"):
            assert batch[f"{side}_{name}"].shape == (4, T)
        outside = batch[f"{side}_attention_mask"] == 0
        assert (batch[f"{side}_labels"][outside] == -100).all()
    np.testing.assert_array_equal(
        batch["reference_chosen_logps"], -batch["reference_rejected_logps"]
    )
    again = preference_batches(features, 4, **options)
    again.set_state(state)
    other = next(again)
    assert all((other[k] == batch[k]).all() for k in batch)
    # Another layout of devices computes the references a little otherwise.
    near = features.with_reference(np.arange(6.0) + 1e-7, -np.arange(6.0))
    preference_batches(near, 4, **options).set_state(state)
    # An evaluation: each once, the last batch filled up.
    held_out = preference_eval_batches(features, 4, **options)
    seen = [b["reference_chosen_logps"][b["example_weight"] > 0] for b in held_out]
    assert sorted(np.concatenate(seen)) == [0, 1, 2, 3, 4, 5]
    last = list(held_out)[-1]
    assert (last["rejected_labels"][last["example_weight"] == 0] == -100).all()


def test_answers_beyond_the_length(write, tokenizer):
    rows = [
        {"prompt": "in the beginning " * 20, "chosen": "a", "rejected": "b"},
        {"prompt": "who", "chosen": "God " * 60, "rejected": "b"},
    ]
    found = preference_features(read_preferences(write(*rows)), tokenizer, 40)
    assert (found.kept, found.truncated, found.lost) == ([1], 1, 1)
    assert str(found) == "1 pairs, 1 cut at 40 tokens; 1 left out, as the prompt alone has as many"
    with pytest.raises(DataError, match="within 40 tokens no pair has any of its answers; raise"):
        preference_features(read_preferences(write(rows[0])), tokenizer, 40)
