"""Linear probes against scikit-learn, on the real digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals import few_shot, fit_logistic, fit_sgd, linear_probe, ridge, sgd_probe
from fmjax.evals.probe import Scaling, split
from fmjax.evals.sgd import batch_order


@pytest.fixture(scope="module")
def digits():
    """300 to train on, 400 to test on; 64 pixels, of which some are always 0."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels[:300] / 16, labels[:300], pixels[300:700] / 16, labels[300:700]


def objective(x, y, kernel, bias, l2):
    """Mean cross-entropy with its penalty in float64."""
    logits = x @ np.float64(kernel) + np.float64(bias)
    top = logits.max(-1)
    nats = np.log(np.exp(logits - top[:, None]).sum(-1)) + top - logits[np.arange(len(y)), y]
    return nats.mean() + l2 / 2 * np.sum(np.float64(kernel) ** 2)


def test_the_optimum_is_that_of_scikit_learn(digits):
    pixels, labels, _, _ = digits
    grid = [1e-4, 1e-2, 1.0]
    # Chunks of 128 do not divide 300 examples.
    fit = fit_logistic(pixels, labels, 10, grid, chunk=128)
    for g, l2 in enumerate(grid):
        other = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=5000)
        other.fit(pixels, labels)
        best = objective(pixels, labels, other.coef_.T, other.intercept_, l2)
        found = objective(pixels, labels, *fit.classifier(g), l2)
        assert best - 1e-6 < found < best + 1e-4
        assert fit.loss[g] == pytest.approx(found, abs=1e-5)
        assert fit.slope[g] <= 1e-5 and fit.steps[g] < 200
        same = fit.classifier(g).logits(pixels).argmax(-1) == other.predict(pixels)
        assert same.all()


def test_linear_probe(digits):
    train, labels, test, truth = digits
    # With these numbers the first fit is a program that the test above has compiled.
    grid, options = (1e-2, 1e-1, 1.0), {"valid_fraction": 0.1, "chunk": 128}
    found = linear_probe(train, labels, test, truth, l2=grid, **options)
    assert tuple(found.validation) == grid
    assert found.validation[found.chosen] == max(found.validation.values())
    scaler = StandardScaler().fit(train)
    other = LogisticRegression(C=1 / (found.chosen * len(labels)), tol=1e-8, max_iter=5000)
    other.fit(scaler.transform(train), labels)
    reference = other.score(scaler.transform(test), truth)
    assert found.accuracy.value == pytest.approx(reference)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    # The returned classifier takes raw pixels, those that are always 0 among them.
    hits = found.classifier.logits(test).argmax(-1) == truth
    assert found.accuracy.value == pytest.approx(hits.mean())


def test_sgd_is_that_of_numpy(digits):
    train, labels, test, truth = digits
    rates = (0.1, 0.4)
    options = {"epochs": 3, "batch_size": 64, "momentum": 0.8}
    fit = fit_sgd(train, labels, 10, rates, seed=5, **options)
    order = batch_order(300, 64, 3, 5)
    assert order.shape == (12, 64) and len(set(order[:4].ravel())) == 256
    for r, rate in enumerate(rates):
        kernel, bias, v, w = np.zeros((64, 10)), np.zeros(10), 0.0, 0.0
        for step, rows in enumerate(order):
            shares = np.exp(train[rows] @ kernel + bias)
            shares = shares / shares.sum(-1, keepdims=True) - np.eye(10)[labels[rows]]
            v = 0.8 * v + train[rows].T @ shares / 64
            w = 0.8 * w + shares.mean(0)
            now = rate * 64 / 256 * (1 + np.cos(np.pi * step / 12)) / 2
            kernel, bias = kernel - now * v, bias - now * w
        np.testing.assert_allclose(fit.kernel[r], kernel, rtol=0, atol=1e-5)
        np.testing.assert_allclose(fit.bias[r], bias, rtol=0, atol=1e-5)
    found = sgd_probe(train, labels, test, truth, rates=(0.001, 3.0), epochs=20, batch_size=64)
    assert found.chosen == 3.0 and found.accuracy.value > 0.8


def test_one_setting_needs_no_choice(digits):
    train, labels, test, truth = digits
    found = sgd_probe(train, labels, test, truth, rates=(3.0,), epochs=20, batch_size=64)
    assert found.validation == {} and found.chosen == 3.0


def test_ridge_is_that_of_scikit_learn(digits):
    train, labels, test, _ = digits
    for rows in (slice(None), slice(40)):  # more examples than pixels, and fewer
        for l2, found in zip((0.1, 10.0), ridge(train[rows], labels[rows], 10, (0.1, 10.0)),
                             strict=True):  # fmt: skip
            other = RidgeClassifier(alpha=l2).fit(train[rows], labels[rows])
            np.testing.assert_allclose(
                found.logits(test), other.decision_function(test), rtol=0, atol=1e-4
            )


def test_few_shot(digits):
    train, labels, test, truth = digits
    found = few_shot(train, labels, test, truth, shots=(1, 10), draws=3)
    assert 0.35 < found[1].value < found[10].value < 0.95
    assert found[1].low < found[1].value < found[1].high
    again = few_shot(train, labels, test, truth, shots=(1,), draws=3)
    assert again[1] == found[1]


def test_every_class_keeps_an_example():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    train, valid = split(labels, 0.4, 0)
    assert sorted([*train, *valid]) == [*range(8)]
    assert np.bincount(labels[valid], minlength=3).tolist() == [2, 1, 0]
    with pytest.raises(DataError, match="every class has a single training example"):
        split(np.arange(5), 0.2, 0)
    with pytest.raises(ConfigError, match="valid_fraction 1.0"):
        split(labels, 1.0, 0)


def test_scaling():
    x = np.array([[1.0, 5, 1000], [3, 5, 1000.00006]], np.float32)
    np.testing.assert_allclose(Scaling.of(x)(x)[:, :2], [[-1, 0], [1, 0]])
    assert Scaling.of(x).deviation[2] == 1


def test_errors(digits):
    train, labels, test, truth = digits
    with pytest.raises(ConfigError, match="l2 .* must be more than 0"):
        fit_logistic(train, labels, 10, [0.0])
    with pytest.raises(ConfigError, match="chunk 0"):
        fit_logistic(train, labels, 10, [1.0], chunk=0)
    with pytest.raises(ConfigError, match="give at least one strength"):
        linear_probe(train, labels, test, truth, l2=())
    with pytest.raises(ConfigError, match="momentum 1.0"):
        fit_sgd(train, labels, 10, [0.1], momentum=1.0)
    with pytest.raises(ConfigError, match="epochs 0"):
        fit_sgd(train, labels, 10, [0.1], epochs=0)
    with pytest.raises(ConfigError, match="l2 .* must be more than 0"):
        ridge(train, labels, 10, ())
    with pytest.raises(ConfigError, match="draws 0"):
        few_shot(train, labels, test, truth, draws=0)
    with pytest.raises(DataError, match=r"class \d has 2\d training examples, fewer than 30"):
        few_shot(train, labels, test, truth, shots=(30,))
    few = np.argsort(labels, kind="stable")[np.searchsorted(np.sort(labels), np.arange(10))]
    with pytest.raises(DataError, match="1 shots are all of the training examples"):
        few_shot(train[few], labels[few], test, truth, shots=(1,))
