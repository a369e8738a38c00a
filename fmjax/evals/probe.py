"""Linear probes: how well does a linear classifier on frozen features tell the classes apart?

Shapes: B examples, D width of the features, N classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.core.errors import ConfigError, DataError
from fmjax.evals.features import pair
from fmjax.evals.figure import Figure, mean_figure
from fmjax.evals.logistic import LinearClassifier, fit_logistic
from fmjax.evals.sgd import fit_sgd

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths for the mean loss over standardised features: from almost none to too much."""

RATE_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Learning rates for a batch of 256."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a linear probe found.

    Attributes:
      accuracy: on the test examples.
      classifier: of raw features, fitted to all training examples with the chosen setting.
      chosen: the strength or learning rate that did best on the validation examples.
      validation: accuracy on the validation examples by setting.
    """

    accuracy: Figure
    classifier: LinearClassifier
    chosen: float
    validation: dict[float, float]


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    l2: Sequence[float] = L2_GRID,
    valid_fraction: float = 0.2,
    standardize: bool = True,
    seed: int = 0,
    **options: Any,
) -> Probe:
    """Multinomial logistic regression by L-BFGS, its L2 chosen on a part of the training examples.

    As CLIP is judged (Radford et al. 2021): the classifier of the best strength is fitted anew to
    all training examples. Test examples choose nothing.

    Args:
      train_features, test_features: f[·, D].
      train_labels, test_labels: i[·].
      l2: strengths to choose from, see `fit_logistic`. A single one is used as it is.
      valid_fraction: share of each class that is held out to choose.
      standardize: shift and scale every feature to mean 0 and deviation 1 on the training examples,
        which the returned classifier does itself.
      seed: of the choice of validation examples.
      **options: of `fit_logistic`.

    Raises:
      DataError, ConfigError: features and labels that do not fit, or a number out of range.
    """

    def fit(x: np.ndarray, y: np.ndarray, classes: int, settings: Sequence[float]) -> Any:
        return fit_logistic(x, y, classes, settings, **options)

    data = pair(train_features, train_labels, test_features, test_labels)
    return _probe(fit, *data, l2, valid_fraction, standardize, seed)


def sgd_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    rates: Sequence[float] = RATE_GRID,
    valid_fraction: float = 0.2,
    standardize: bool = False,
    seed: int = 0,
    **options: Any,
) -> Probe:
    """The same by stochastic gradient descent, its learning rate chosen: DINO's linear evaluation.

    Args:
      rates: learning rates to choose from, see `fit_sgd`.
      **options: of `fit_sgd`.
      The rest as for `linear_probe`.

    Raises:
      DataError, ConfigError: as `linear_probe`.
    """

    def fit(x: np.ndarray, y: np.ndarray, classes: int, settings: Sequence[float]) -> Any:
        return fit_sgd(x, y, classes, settings, seed=seed, **options)

    data = pair(train_features, train_labels, test_features, test_labels)
    return _probe(fit, *data, rates, valid_fraction, standardize, seed)


def _probe(
    fit: Callable[[np.ndarray, np.ndarray, int, Sequence[float]], Any],
    x: np.ndarray,
    y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    classes: int,
    settings: Sequence[float],
    valid_fraction: float,
    standardize: bool,
    seed: int,
) -> Probe:
    scaling = Scaling.of(x) if standardize else Scaling.none(x.shape[1])
    x, test_x = scaling(x), scaling(test_x)
    settings = [float(s) for s in settings]
    validation: dict[float, float] = {}
    if len(settings) > 1:
        train, valid = split(y, valid_fraction, seed)
        fitted = fit(x[train], y[train], classes, settings)
        for i, setting in enumerate(settings):
            chosen = fitted.classifier(i).logits(x[valid]).argmax(-1)
            validation[setting] = float((chosen == y[valid]).mean())
        # Of equally good ones that in the middle, which is the farthest from what is worse.
        best = [s for s, accuracy in validation.items() if accuracy == max(validation.values())]
        settings = [sorted(best)[len(best) // 2]]
    if len(settings) != 1:
        raise ConfigError("probe: give at least one strength or learning rate")
    classifier = fit(x, y, classes, settings).classifier(0)
    hits = classifier.logits(test_x).argmax(-1) == test_y
    return Probe(mean_figure(hits), scaling.folded(classifier), settings[0], validation)


class Scaling(NamedTuple):
    """features → (features − mean) / deviation, both f32[D]."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Scaling":
        """Mean 0 and deviation 1; features that are all alike only lose their mean."""
        mean, deviation = features.mean(0, np.float64), features.std(0, dtype=np.float64)
        constant = deviation <= 1e-6 * np.abs(features).max(0)
        return cls(mean.astype(np.float32), np.where(constant, 1, deviation).astype(np.float32))

    @classmethod
    def none(cls, width: int) -> "Scaling":
        """Leaves features as they are."""
        return cls(np.zeros(width, np.float32), np.ones(width, np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.deviation

    def folded(self, classifier: LinearClassifier) -> LinearClassifier:
        """A classifier of scaled features as one of raw features."""
        kernel = classifier.kernel / self.deviation[:, None]
        return LinearClassifier(kernel, classifier.bias - self.mean @ kernel)


def split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train i64[·], valid i64[·]): a part of each class held out; one example always stays.

    Raises:
      ConfigError: a fraction that is not between 0 and 1.
      DataError: no class has two examples, so that none can be held out.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"valid_fraction {fraction} must lie between 0 and 1")
    order = np.random.default_rng(seed).permutation(len(labels))
    valid = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held_out = max(1, round(fraction * len(members)))
        valid[members[: min(held_out, len(members) - 1)]] = True
    if not valid.any():
        raise DataError(
            "probe: every class has a single training example, so none can be held out to choose a "
            "setting; give one setting, or more examples"
        )
    return np.flatnonzero(~valid), np.flatnonzero(valid)
