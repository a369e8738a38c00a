"""Few-shot probes: what a handful of examples of each class are worth on frozen features.

Shapes: B examples, D width of the features, N classes, G strengths of regularisation.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals.features import pair
from fmjax.evals.figure import Figure, mean_figure
from fmjax.evals.logistic import LinearClassifier
from fmjax.evals.probe import Scaling

L2_GRID = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Strengths for the sum of squares over standardised features."""

_JUDGES = 10_000
"""Examples that were not drawn and choose the strength, at most."""


def ridge(features: Any, labels: Any, classes: int, l2: Sequence[float]) -> list[LinearClassifier]:
    """Least squares to +1 for the class and −1 for the others, in closed form, for each l2.

    Minimises |features @ kernel + bias − targets|² + l2 · |kernel|², the bias being free, as
    scikit-learn's `RidgeClassifier`. One singular value decomposition serves all strengths.

    Args:
      features: f[B, D].
      labels: i[B], below `classes`.
      classes: N.
      l2: f[G], above 0.

    Raises:
      ConfigError: a strength that is not above 0.
    """
    strengths = np.asarray(l2, np.float32)
    if not strengths.size or not (strengths > 0).all():
        raise ConfigError(f"l2 {strengths.tolist()} must be more than 0")
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int32)
    kernels, biases = jax.device_get(_ridge(features, labels, strengths, classes=classes))
    return [LinearClassifier(kernel, bias) for kernel, bias in zip(kernels, biases, strict=True)]


@functools.partial(jax.jit, static_argnames="classes")
def _ridge(x_BD: jax.Array, labels_B: jax.Array, l2_G: jax.Array, *, classes: int) -> Any:
    targets_BN = 2 * jax.nn.one_hot(labels_B, classes) - 1
    mean_D, level_N = x_BD.mean(0), targets_BN.mean(0)
    with jax.default_matmul_precision("highest"):
        u_BR, s_R, v_RD = jnp.linalg.svd(x_BD - mean_D, full_matrices=False)
        along_RN = u_BR.T @ (targets_BN - level_N)
        shrunk_GRN = (s_R / (s_R**2 + l2_G[:, None]))[..., None] * along_RN
        kernel_GDN = v_RD.T @ shrunk_GRN
        return kernel_GDN, level_N - mean_D @ kernel_GDN


def few_shot(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 5,
    l2: Sequence[float] = L2_GRID,
    seed: int = 0,
) -> dict[int, Figure]:
    """Accuracy by number of examples of each class, the mean over draws of these examples.

    Features are standardised by all training features, without their labels. The strength that is
    best over the draws is chosen on the training examples that were not drawn, the test examples
    choose nothing; whoever has no more labels than the shots gives one strength.

    Args:
      train_features, test_features: f[·, D].
      train_labels, test_labels: i[·].
      shots: numbers of examples of each class.
      draws: of the examples; the interval is that of the test examples.
      l2: strengths, see `ridge`.
      seed: of the draws.

    Raises:
      DataError, ConfigError: features and labels that do not fit, a class with too few examples,
        or a number out of range.
    """
    x, y, test_x, test_y, classes = pair(train_features, train_labels, test_features, test_labels)
    if draws < 1 or not shots or min(shots) < 1:
        raise ConfigError(f"few-shot: shots {list(shots)} and draws {draws} must be at least 1")
    counts = np.bincount(y, minlength=classes)
    lacking = int(counts.argmin())
    if counts[lacking] < max(shots):
        raise DataError(
            f"few-shot: class {lacking} has {counts[lacking]} training examples, fewer than "
            f"{max(shots)} shots"
        )
    if len(l2) > 1 and len(y) <= max(shots) * classes:
        raise DataError(
            f"few-shot: {max(shots)} shots are all of the training examples, and none is left to "
            "choose the strength on; give one l2"
        )
    scaling = Scaling.of(x)
    x, test_x = scaling(x), scaling(test_x)
    figures = {}
    for k in shots:
        rng = np.random.default_rng([seed, k])
        chosen, tested = np.zeros(len(l2)), np.zeros((len(l2), len(test_y)))
        for _ in range(draws):
            order = rng.permutation(len(y))
            rows, rest = _draw(y, order, counts, k)
            for g, fitted in enumerate(ridge(x[rows], y[rows], classes, l2)):
                if len(l2) > 1:
                    chosen[g] += (fitted.logits(x[rest]).argmax(-1) == y[rest]).mean()
                tested[g] += fitted.logits(test_x).argmax(-1) == test_y
        figures[k] = mean_figure(tested[chosen.argmax()] / draws)
    return figures


def _draw(
    labels: np.ndarray, order: np.ndarray, counts: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(the first k examples of each class in this order, the first of the others)."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    rows = by_class[(starts[:, None] + np.arange(k)).ravel()]
    free = np.ones(len(labels), bool)
    free[rows] = False
    return rows, order[free[order]][:_JUDGES]
