"""Classification and regression metrics, against scikit-learn and on data that say nothing."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import (
    classification_metrics,
    confusion_matrix,
    multi_label_metrics,
    regression_metrics,
)

RATES = ("precision", "recall", "f1")


@pytest.mark.parametrize("classes", [2, 5])
def test_single_label_agrees_with_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    labels, logits = rng.integers(classes, size=200), rng.normal(size=(200, classes))
    found = classification_metrics(labels, logits)
    chosen = logits.argmax(-1)
    assert found["accuracy"] == sk.accuracy_score(labels, chosen)
    assert found["matthews_correlation"] == sk.matthews_corrcoef(labels, chosen)
    for average in ("macro", "weighted"):
        expected = sk.precision_recall_fscore_support(labels, chosen, average=average)
        np.testing.assert_allclose([found[f"{average}_{r}"] for r in RATES], expected[:3])
    expected = sk.precision_recall_fscore_support(labels, chosen)
    for what, column in zip((*RATES, "support"), expected, strict=True):
        np.testing.assert_allclose([found[f"{what}/{i}"] for i in range(classes)], column)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    auc = sk.roc_auc_score(labels, shares[:, 1] if classes == 2 else shares, multi_class="ovr")
    assert found["roc_auc"] == pytest.approx(auc)
    by_ids = classification_metrics(labels, chosen)
    assert by_ids == {k: v for k, v in found.items() if k != "roc_auc"}
    matrix = confusion_matrix(labels, chosen, classes)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, chosen))


def test_classes_that_do_not_occur():
    found = classification_metrics([0, 0, 1], [0, 2, 1], ("a", "b", "c", "d"))
    # As scikit-learn: c was predicted and counts, d occurs nowhere and does not.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["f1/d"] == found["support/d"] == found["support/c"] == 0.0
    assert found["weighted_f1"] == pytest.approx((2 / 3 * 2 + 1) / 3)


def test_one_class_only():
    found = classification_metrics([1, 1], np.array([[0.0, 1.0], [0.0, 2.0]]))
    assert found["accuracy"] == found["macro_f1"] == 1.0
    assert found["matthews_correlation"] == 0.0 and math.isnan(found["roc_auc"])
    wrong = classification_metrics([1, 1], [0, 0])
    assert wrong["accuracy"] == wrong["macro_f1"] == wrong["matthews_correlation"] == 0.0


@pytest.mark.parametrize(
    ("labels", "predictions", "names", "text"),
    [
        ([], [], None, "no example to measure"),
        ([0, 1], [0], None, "2 labels, 1 predictions; give as many"),
        ([0, 2], [0, 1], ("a", "b"), "label 2 is none of 2 classes"),
        ([0, -1], [0, 1], None, "label -1 is none"),
        ([0, 1], [0, 3], ("a", "b"), "prediction 3 is none"),
        ([0], np.zeros((1, 3)), ("a", "b"), r"logits \[1, 3\] are not of 2 classes"),
    ],
)
def test_bad_single_labels(labels, predictions, names, text):
    with pytest.raises(DataError, match=text):
        classification_metrics(labels, predictions, names)


@pytest.mark.parametrize("classes", [1, 4])
def test_multi_label_agrees_with_scikit_learn(classes):
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(2, size=(100, classes)), rng.normal(size=(100, classes))
    found = multi_label_metrics(labels.astype(np.float32), logits, threshold=0.3)
    chosen = 1 / (1 + np.exp(-logits)) >= 0.3
    assert found["subset_accuracy"] == np.mean((labels == chosen).all(-1))
    each = [sk.precision_recall_fscore_support(labels[:, i], chosen[:, i], average="binary")[:3]
            for i in range(classes)]  # fmt: skip
    for what, values in zip(RATES, zip(*each, strict=True), strict=True):
        np.testing.assert_allclose([found[f"{what}/{i}"] for i in range(classes)], values)
        assert found[f"macro_{what}"] == pytest.approx(np.mean(values))
    micro = sk.precision_recall_fscore_support(labels.ravel(), chosen.ravel(), average="binary")
    np.testing.assert_allclose([found[f"micro_{r}"] for r in RATES], micro[:3])
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, logits))
    assert "roc_auc" not in multi_label_metrics(labels, chosen)


def test_multi_label_without_any_label_or_prediction():
    found = multi_label_metrics(np.zeros((3, 2)), np.full((3, 2), -9.0), ("a", "b"))
    assert found["subset_accuracy"] == 1.0 and found["micro_f1"] == found["macro_f1"] == 0.0
    assert math.isnan(found["roc_auc"])
    with pytest.raises(DataError, match=r"labels \[2, 2\] and predictions \[2, 3\]"):
        multi_label_metrics(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ConfigError, match="threshold 1"):
        multi_label_metrics(np.zeros((2, 2)), np.zeros((2, 2)), threshold=1)


def test_regression():
    found = regression_metrics([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 6.0])
    assert found["mae"] == 1.0 and found["rmse"] == pytest.approx(math.sqrt(1.5))
    assert found["spearman"] == pytest.approx(0.8)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 3, 2, 6])[0, 1])
    assert regression_metrics(np.ones((4, 1)), np.ones(4))["mae"] == 0.0
    with pytest.raises(DataError, match="differ"):
        regression_metrics(np.ones((4, 2)), np.ones((4, 1)))


@pytest.mark.parametrize(
    "predictions", [[2.0, 2.0, 2.0], [0.1 + 0.2, 0.3, 0.3], [1.0, math.nan, 2.0]]
)
def test_correlations_that_are_not_defined(predictions):
    found = regression_metrics([1.0, 2.0, 3.0], predictions)
    assert math.isnan(found["pearson"]) and math.isnan(found["spearman"])
    assert math.isnan(regression_metrics([1.0], [1.0])["spearman"])
