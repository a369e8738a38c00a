"""Zero-shot classification, and retrieval between images and texts."""

import numpy as np
import pytest

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import class_embeddings, mean_figure, retrieval, zero_shot, zero_shot_probabilities


def embed(prompts):
    """Bags of letters: something that can be written down."""
    return np.array([[p.count(c) for c in "abcdefghij"] for p in prompts], np.float32)


def test_class_embeddings_are_means_of_normalised_prompts():
    found = class_embeddings(embed, ["abc", "dd"], ["{}", "a {} e"])
    prompts = {"abc": ["abc", "a abc e"], "dd": ["dd", "a dd e"]}
    for row, texts in zip(found, prompts.values(), strict=True):
        each = embed(texts)
        mean = (each / np.linalg.norm(each, axis=-1, keepdims=True)).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-6)


def test_zero_shot():
    classes = np.eye(3)
    images = np.array([[3.0, 1, 0], [2, 1, 0], [1, 2, 3], [1, 1, 0]])
    found = zero_shot(images, classes, [0, 1, 2, 0], ks=(1, 2, 5))
    # The last image is as near to a wrong class as to its own, which counts against it.
    assert [f.value for f in found.values()] == [0.5, 1.0] and list(found) == [1, 2]
    shares = zero_shot_probabilities(images, classes, 10.0)
    logits = 10 * images / np.linalg.norm(images, axis=-1, keepdims=True)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(shares, expected, rtol=1e-5)


def test_retrieval_both_ways():
    images = np.eye(3)
    texts = np.array([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [1, 2, 3]])
    # Text 1 is of image 1 but nearer to image 2; the other texts are found at once.
    found = retrieval(images, texts, [0, 1, 1, 2], ks=(1, 2, 10))
    assert {k: f.value for k, f in found.text_to_image.recall.items()} == {1: 0.75, 2: 1, 10: 1}
    assert found.text_to_image.chance == pytest.approx({1: 1 / 3, 2: 2 / 3, 10: 1})
    # Image 2 finds text 1, which is of image 1, before its own.
    assert found.image_to_text.recall[1].value == pytest.approx(2 / 3)
    assert found.image_to_text.recall[2].value == 1
    one, two = (1 / 4, 1 / 2), (1 / 2, 1 - 1 / 6)  # chance with one right text of four, and two
    assert found.image_to_text.chance == pytest.approx(
        {k: (2 * a + b) / 3 for k, a, b in zip((1, 2), one, two, strict=True)} | {10: 1}
    )
    assert found.text_to_image.median_rank == 1


def test_retrieval_against_numpy_with_many_texts():
    rng = np.random.default_rng(0)
    owner = rng.integers(30, size=80)
    images = rng.normal(size=(30, 5))
    texts = images[owner] + rng.normal(size=(80, 5))
    found = retrieval(images, texts, owner, ks=(1, 5))
    cosines = texts @ images.T
    cosines /= np.linalg.norm(texts, axis=-1)[:, None] * np.linalg.norm(images, axis=-1)
    for k in (1, 5):
        top = np.argsort(-cosines, -1)[:, :k]
        assert found.text_to_image.recall[k].value == pytest.approx(
            (top == owner[:, None]).any(-1).mean()
        )
        top = np.argsort(-cosines.T, -1)[np.unique(owner), :k]
        assert found.image_to_text.recall[k].value == pytest.approx(
            (owner[top] == np.unique(owner)[:, None]).any(-1).mean()
        )
        assert found.image_to_text.recall[k].low > found.image_to_text.chance[k]
    plain = retrieval(images, images + 0.1 * rng.normal(size=(30, 5)), ks=(1,))
    assert plain.text_to_image.recall[1].value > 0.8


def test_intervals_draw_groups_together():
    hits = np.repeat(np.arange(40) % 2, 25)
    alone, together = mean_figure(hits), mean_figure(hits, np.repeat(np.arange(40), 25))
    assert alone.value == together.value == 0.5
    # As wide as for the 40 groups, not the 1000 examples.
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert str(mean_figure([1, 1, 1])) == "1.000 (1.000–1.000)"


def test_errors():
    for names in ([], ["a", "a"], ["a", " "]):
        with pytest.raises(ConfigError, match="must be different"):
            class_embeddings(embed, names)
    for templates in (["a photo"], ["{} {}"], []):
        with pytest.raises(ConfigError, match="must each hold one"):
            class_embeddings(embed, ["a"], templates)
    with pytest.raises(DataError, match="2 prompts have 1 embeddings"):
        class_embeddings(lambda prompts: np.ones((1, 3)), ["a", "b"], ["{}"])
    with pytest.raises(DataError, match="2 is none of 2 classes"):
        zero_shot(np.ones((1, 2)), np.eye(2), [2])
    with pytest.raises(DataError, match="3 texts must each name one of 2 images"):
        retrieval(np.eye(2), np.ones((3, 2)))
    with pytest.raises(DataError, match="got float64"):
        retrieval(np.eye(2), np.eye(2), [0.0, 1.0])
    with pytest.raises(ConfigError, match=r"ks \[0\]"):
        retrieval(np.eye(2), np.eye(2), ks=(0,))
    with pytest.raises(DataError, match="image features are 2 wide and class features 3"):
        zero_shot_probabilities(np.eye(2), np.eye(3), 1.0)
