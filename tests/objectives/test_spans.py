"""Extractive question answering against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from task_cases import (
    against_torch,
    bert,
    compare_model,
    given,
    mean_and_gradient,
    same_update,
    text_batch,
    toy,
    toy_params,
)
from transformers.loss.loss_utils import ForQuestionAnsweringLoss

import fmjax
from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives import QuestionAnswering

RNG = np.random.RandomState(0)
PARAMS = {k: jnp.asarray(RNG.randn(4, 7) * 2, jnp.float32) for k in ("start", "end")}
heads = given(start_logits="start", end_logits="end")


def spans(starts, ends, weight=None):
    batch = {"input_ids": jnp.zeros((len(starts), 7), jnp.int32)}
    batch |= {"start_positions": np.array(starts), "end_positions": np.array(ends)}
    return batch if weight is None else batch | {"example_weight": np.asarray(weight, np.float32)}


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        ([0, 2, 6, 3], [0, 4, 6, 3]),
        ([0, 2, 7, 3], [0, 4, 9, 3]),  # the third answer lies beyond the row
        ([0, 2, 7, 3], [0, 4, 6, 50]),  # one start and another row's end do
        ([-1, 2, 6, 3], [-5, 4, 6, 3]),
    ],
)
def test_the_loss_is_transformers(starts, ends):
    against_torch(
        QuestionAnswering(),
        heads,
        PARAMS,
        spans(starts, ends),
        lambda start, end: ForQuestionAnsweringLoss(
            start, end, torch.tensor(starts), torch.tensor(ends)
        ),
    )


def test_an_end_alone_beyond_the_row_leaves_the_mean_of_the_seven_others():
    logits = np.concatenate(list(PARAMS.values()))
    nll = np.log(np.exp(logits).sum(1, keepdims=True)) - logits
    value, _, metrics = mean_and_gradient(
        QuestionAnswering(), heads, PARAMS, spans([0, 2, 6, 3], [0, 4, 6, 7])
    )
    inside = nll[np.arange(7), [0, 2, 6, 3, 0, 4, 6]]
    np.testing.assert_allclose(value, inside.mean(), rtol=1e-5)
    assert metrics["loss"] == value


def test_accuracy_needs_both_ends_and_counts_weights():
    starts, ends = (np.asarray(PARAMS[k]).argmax(1) for k in ("start", "end"))
    wrong = np.where(np.arange(4) == 1, (ends + 1) % 7, ends)
    _, _, metrics = mean_and_gradient(
        QuestionAnswering(), heads, PARAMS, spans(starts, wrong, [1, 1, 2, 0])
    )
    assert metrics["accuracy"] == pytest.approx(3 / 4)


def test_a_row_of_weight_zero_is_as_if_absent():
    three = {k: v[:3] for k, v in PARAMS.items()}
    value, grads, _ = mean_and_gradient(
        QuestionAnswering(), heads, PARAMS, spans([0, 2, 6, 3], [0, 4, 6, 3], [1, 1, 1, 0])
    )
    other, wanted, _ = mean_and_gradient(
        QuestionAnswering(), heads, three, spans([0, 2, 6], [0, 4, 6])
    )
    np.testing.assert_allclose(value, other, rtol=1e-6)
    np.testing.assert_allclose(grads["end"][:3], wanted["end"], atol=1e-6)
    np.testing.assert_array_equal(grads["start"][3], 0)


def test_a_whole_bert_learns_as_in_transformers(tmp_path):
    hf, model, params = bert("BertForQuestionAnswering", tmp_path)
    positions = {"start_positions": [1, 0, 8], "end_positions": [4, 0, 9]}  # the last beyond
    batch = text_batch((3, 8)) | {k: np.array(v, np.int32) for k, v in positions.items()}
    compare_model(QuestionAnswering(), hf, model, params, batch)


def test_accumulation_and_a_mesh_give_the_same_update():
    apply = toy(lambda x, p: {f"{k}_logits": (x @ p["head"])[..., i] for i, k in enumerate(PARAMS)})
    batch = text_batch((8, 5)) | {
        "start_positions": np.array([0, 1, 2, 3, 4, 5, 0, 1], np.int32),
        "end_positions": np.array([0, 2, 5, 3, 4, 9, 0, 4], np.int32),
        "example_weight": np.array([1, 1, 1, 0, 2, 1, 0, 1], np.float32),
    }
    variants = {"accumulate": 2}, {"mesh": fmjax.make_mesh(data=8)}
    same_update(apply, QuestionAnswering(), toy_params(2), batch, *variants)


def test_what_does_not_fit_is_named():
    batch = spans([0, 2, 6, 3], [0, 4, 6, 3])
    objective, variables = QuestionAnswering(), {"params": PARAMS}
    with pytest.raises(DataError, match="end_positions is int32 of shape .3,.*answer's last token"):
        objective.loss(heads, variables, {}, batch | {"end_positions": np.arange(3)}, None)
    with pytest.raises(DataError, match="the batch has no start_positions; it needs integer"):
        objective.loss(heads, variables, {}, {"input_ids": batch["input_ids"]}, None)
    with pytest.raises(ConfigError, match="needs the head 'question-answering'"):
        objective.loss(given(logits="start"), variables, {}, batch, None)
