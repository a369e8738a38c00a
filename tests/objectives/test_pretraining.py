"""BERT's pretraining against transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from task_cases import (
    bert,
    compare_model,
    given,
    mean_and_gradient,
    same_update,
    text_batch,
    toy,
    toy_params,
)

import fmjax
from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives import MaskedLM, Pretraining

MASKED = MaskedLM(mask_token_id=3, vocab_size=40, special_ids=(0, 1, 2), probability=0.4)
OBJECTIVE = Pretraining(MASKED)
FOLLOWS = np.array([0, 1, 1], np.int32)


def labelled(batch):
    """Predict every third token; the rows differ in how many."""
    labels = np.where(batch["attention_mask"] * (np.arange(batch["input_ids"].shape[1]) % 3 == 1),
                      batch["input_ids"], -100)  # fmt: skip
    return batch | {"labels": labels.astype(np.int32)}


def test_a_whole_bert_learns_as_in_transformers(tmp_path):
    hf, model, params = bert("BertForPreTraining", tmp_path)
    batch = labelled(text_batch((3, 8))) | {"next_sentence_label": np.array([1, -100, 0], np.int32)}
    compare_model(OBJECTIVE, hf, model, params, batch)


apply = toy(lambda x, p: {"logits": x @ p["table"].T,
                          "seq_relationship_logits": x.mean(1) @ p["head"]})  # fmt: skip


def test_the_masked_part_is_the_masked_lms():
    """The same tokens are hidden, with the same key, as without the next sentence."""
    batch = text_batch((3, 8)) | {"next_sentence_label": FOLLOWS}
    params, key = toy_params(2), jax.random.key(7)
    _, _, alone = mean_and_gradient(MASKED, apply, params, batch, key)
    loss, _, both = mean_and_gradient(OBJECTIVE, apply, params, batch, key)
    assert both["masked_lm_loss"] == alone["loss"]
    np.testing.assert_allclose(loss, alone["loss"] + both["next_sentence_loss"], rtol=1e-6)
    assert "accuracy" not in both and 0 <= both["next_sentence_accuracy"] <= 1
    _, _, evaluated = mean_and_gradient(OBJECTIVE, apply, params, batch)
    assert set(evaluated) - set(both) == {"accuracy"}


def test_a_row_of_weight_zero_is_as_if_absent():
    batch = labelled(text_batch((3, 8))) | {"next_sentence_label": FOLLOWS}
    two = {k: v[:2] for k, v in batch.items()}
    batch["example_weight"] = np.array([1, 1, 0], np.float32)
    value, grads, metrics = mean_and_gradient(OBJECTIVE, apply, toy_params(2), batch)
    other, wanted, again = mean_and_gradient(OBJECTIVE, apply, toy_params(2), two)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, wanted)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], again[name], rtol=1e-6, err_msg=name)


def test_accumulation_and_a_mesh_give_the_same_update():
    batch = text_batch((8, 5)) | {"next_sentence_label": np.arange(8, dtype=np.int32) % 2}
    batch["attention_mask"][:] = 1  # As many hidden tokens in each microbatch.
    batch["input_ids"] = np.random.RandomState(1).randint(5, 40, (8, 5)).astype(np.int32)
    batch = labelled(batch)
    variants = {"accumulate": 2}, {"mesh": fmjax.make_mesh(data=8)}
    same_update(apply, OBJECTIVE, toy_params(2), batch, *variants)


def test_means_over_batches_of_different_weights():
    means = {"loss": 9.0, "masked_lm_loss": 2.0, "next_sentence_loss": 0.5}
    summary = OBJECTIVE.summarize(means)
    assert summary["loss"] == 2.5 and summary["perplexity"] == pytest.approx(math.exp(2))
    assert summary["masked_lm_loss"] == 2.0


def test_what_does_not_fit_is_named():
    batch = labelled(text_batch((3, 8)))
    variables = {"params": toy_params(2)}
    with pytest.raises(DataError, match="no next_sentence_label; .* 0 where the second sentence"):
        OBJECTIVE.loss(apply, variables, {}, batch, None)
    other = given(logits="table")
    with pytest.raises(ConfigError, match="needs the head 'pretraining'"):
        OBJECTIVE.loss(other, variables, {}, batch | {"next_sentence_label": FOLLOWS}, None)


def test_example_weight_of_the_masked_lm():
    batch = labelled(text_batch((3, 8)))
    logits = jnp.zeros((3, 8, 40))
    weighted = batch | {"example_weight": np.array([0.5, 0, 2], np.float32)}
    _, weight, _ = MASKED.sums(logits, batch["labels"], weighted, None)
    assert float(weight) == (batch["labels"] != -100).sum(1) @ [0.5, 0, 2]
