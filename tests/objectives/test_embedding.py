"""Sentence embeddings against sentence-transformers, and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
)
from task_cases import (
    ATOL,
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

import fmjax
from fmjax.core import logical
from fmjax.core.errors import ConfigError, DataError
from fmjax.objectives import SentenceEmbedding
from fmjax.parallel import DEFAULT_RULES, shard_batch
from fmjax.train import make_step

FORWARD = {"scale": 20.0}
BOTH = FORWARD | {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
SCORES = np.array([0.9, 0.1, 0.5, 0.0, 1.0, 0.3, 0.7, 0.2], np.float32)
embeddings = given(last_hidden_state="x")


def ranking(options):
    return MultipleNegativesRankingLoss(torch.nn.Identity(), **options)


def vectors(B, K, D=5):
    x = np.random.RandomState(B + K).randn(B * K, 1, D) * 3
    return {"x": jnp.asarray(x, jnp.float32)}, {"input_ids": jnp.arange(B * K).reshape(B, K, 1)}


@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_ranking_is_sentence_transformers(K, symmetric):
    params, batch = vectors(6, K)

    def theirs(x):
        columns = list(x.reshape(6, K, -1).unbind(1))
        loss = ranking(BOTH if symmetric else FORWARD)
        return loss.compute_loss_from_embeddings(columns, None)

    metrics = against_torch(
        SentenceEmbedding(symmetric=symmetric), embeddings, params, batch, theirs
    )
    x = np.array(params["x"]).reshape(6, K, -1)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    nearest = (x[:, 0] @ x[:, 1:].swapaxes(0, 1).reshape(-1, 5).T).argmax(1)
    assert metrics["accuracy"] == pytest.approx(np.mean(nearest == np.arange(6)))


def test_regression_is_sentence_transformers():
    params, batch = vectors(8, 2)
    against_torch(
        SentenceEmbedding(regression=True),
        embeddings,
        params,
        batch | {"labels": SCORES},
        lambda x: CosineSimilarityLoss(torch.nn.Identity()).compute_loss_from_embeddings(
            list(x.reshape(8, 2, -1).unbind(1)), torch.tensor(SCORES)
        ),
    )


def test_a_whole_bert_learns_as_with_sentence_transformers(tmp_path):
    hf, model, params = bert("BertModel", tmp_path)
    batch = text_batch((4, 3, 6))

    def theirs(hf, tensors):
        texts = {k: v.reshape(12, 6) for k, v in tensors.items()}
        mask = texts["attention_mask"][..., None]
        pooled = (hf(**texts).last_hidden_state * mask).sum(1) / mask.sum(1)
        columns = list(pooled.reshape(4, 3, -1).unbind(1))
        return ranking(FORWARD).compute_loss_from_embeddings(columns, None)

    pooler = ("pooler.dense.weight", "pooler.dense.bias")
    compare_model(SentenceEmbedding(symmetric=False), hf, model, params, batch, theirs, pooler)


def test_rows_of_weight_zero_are_neither_anchors_nor_candidates():
    """Not even where they hold no token at all."""
    apply = toy(lambda x, p: {"last_hidden_state": x @ p["head"]})
    batch = text_batch((6, 3, 5))
    four = {k: v[[0, 2, 3, 5]] for k, v in batch.items()}
    batch["example_weight"] = np.array([1, 0, 1, 1, 0, 1], np.float32)
    batch["attention_mask"][4] = 0
    batch["input_ids"][1] = batch["input_ids"][0]
    for symmetric in (False, True):
        objective = SentenceEmbedding(symmetric=symmetric)
        value, grads, metrics = mean_and_gradient(objective, apply, toy_params(), batch)
        other, wanted, again = mean_and_gradient(objective, apply, toy_params(), four)
        np.testing.assert_allclose(value, other, rtol=ATOL)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ATOL), grads, wanted)
        assert metrics["accuracy"] == again["accuracy"]


def test_weights_multiply_the_anchors_losses():
    params, batch = vectors(3, 2)

    def loss(*weight):
        weighted = batch | {"example_weight": np.array(weight, np.float32)}
        return mean_and_gradient(SentenceEmbedding(), embeddings, params, weighted)[0]

    tiny = 1e-30  # A candidate that does not count as an anchor.
    alone = [loss(1, tiny, tiny), loss(tiny, 1, tiny), loss(tiny, tiny, 1)]
    np.testing.assert_allclose(loss(1, 2, 0.5), np.average(alone, weights=[1, 2, 0.5]), rtol=ATOL)


def test_duplicates_are_not_pushed_apart():
    """The loss equals one that is computed without the pairs that belong together."""
    ids = np.arange(4 * 3).reshape(4, 3, 1)
    ids[1, 1] = ids[0, 1]  # two anchors with one positive
    ids[3, 0] = ids[2, 0]  # two positives of one anchor
    ids[2, 2] = ids[1, 0]  # a hard negative of row 2 is the anchor of row 1
    params, _ = vectors(4, 3)
    batch = {"input_ids": jnp.asarray(ids)}
    x = np.asarray(params["x"], np.float64).reshape(4, 3, -1)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    scores = 20 * x[:, 0] @ np.concatenate([x[:, 1], x[:, 2]]).T
    backward, everything = scores[:, :4].T.copy(), scores.copy()
    kin = [(0, 1), (1, 0), (2, 3), (3, 2)]
    for i, j in [*kin, (1, 4 + 2)]:
        scores[i, j] = -np.inf
    for i, j in kin:
        backward[i, j] = -np.inf
    one, two, blind = (
        np.log(np.exp(s).sum(1)) - np.diag(s) for s in (scores, backward, everything)
    )
    for symmetric, expected in ((False, one), (True, (one + two) / 2)):
        objective = SentenceEmbedding(symmetric=symmetric)
        value, _, _ = mean_and_gradient(objective, embeddings, params, batch)
        np.testing.assert_allclose(value, expected.mean(), rtol=ATOL)
    objective = SentenceEmbedding(symmetric=False, mask_duplicates=False)
    value, _, _ = mean_and_gradient(objective, embeddings, params, batch)
    np.testing.assert_allclose(value, blind.mean(), rtol=ATOL)


def test_the_negatives_are_those_of_all_devices():
    apply = toy(lambda x, p: {"last_hidden_state": x @ p["head"]})
    objective, params = SentenceEmbedding(), toy_params()
    batch = text_batch((16, 3, 5))
    batch["example_weight"] = np.ones(16, np.float32) * (np.arange(16) != 9)
    batch["input_ids"][12, 1], batch["attention_mask"][12, 1] = (
        batch[name][2, 1] for name in ("input_ids", "attention_mask")
    )
    mesh = fmjax.make_mesh(data=4, fsdp=2)
    same_update(apply, objective, params, batch, {"mesh": mesh})

    def run(params, batch):
        with logical.use(mesh, DEFAULT_RULES):
            return mean_and_gradient(objective, apply, params, batch)

    spread = jax.jit(run)(params, shard_batch(batch, mesh, DEFAULT_RULES))
    whole = mean_and_gradient(objective, apply, params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=ATOL), spread, whole)


def test_regression_decomposes_and_ranking_does_not():
    apply = toy(lambda x, p: {"last_hidden_state": x @ p["head"]})
    with pytest.raises(ConfigError, match="SentenceEmbedding compares the examples of a whole"):
        make_step(apply, SentenceEmbedding(), optax.sgd(0.1), accumulate=2)
    batch = text_batch((8, 2, 5)) | {"labels": SCORES}
    batch["example_weight"] = np.array([1, 1, 1, 0, 2, 1, 0, 1], np.float32)
    same_update(apply, SentenceEmbedding(regression=True), toy_params(), batch, {"accumulate": 2})


@pytest.mark.parametrize(
    ("options", "shape", "labels", "message"),
    [
        ({}, (4, 5), None, r"input_ids \(4, 5\) must be .rows, texts, tokens. with 2 or more"),
        ({}, (4, 1, 5), None, "with 2 or more texts a row"),
        ({"regression": True}, (4, 3, 5), SCORES[:4], "with 2 texts a row"),
        ({"regression": True}, (4, 2, 5), None, "no labels; .* the cosine of each row's two texts"),
        ({"regression": True}, (4, 2, 5), np.arange(4), "labels is int32 of shape .4,.; it must"),
        ({}, (4, 2, 5), SCORES[:4], r"use SentenceEmbedding\(regression=True\)"),
    ],
)
def test_batches_of_another_form_are_named(options, shape, labels, message):
    batch = {"input_ids": jnp.ones(shape, jnp.int32)}
    batch |= {} if labels is None else {"labels": labels}
    apply = toy(lambda x, p: {"last_hidden_state": x})
    with pytest.raises(DataError, match=message):
        SentenceEmbedding(**options).loss(apply, {"params": toy_params()}, {}, batch, None)


def test_a_temperature_is_positive():
    with pytest.raises(ConfigError, match="temperature=0 must be positive"):
        SentenceEmbedding(temperature=0)
