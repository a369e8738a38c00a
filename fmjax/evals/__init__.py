"""How good a model is.

Scikit-learn and SciPy are imported by the metrics that need them, when they are called.
"""

from fmjax.evals.bootstrap import (
    classification_intervals,
    interval,
    mean_interval,
    sums_interval,
    tagging_intervals,
)
from fmjax.evals.classification import (
    classification_metrics,
    confusion_matrix,
    multi_label_metrics,
    regression_metrics,
)
from fmjax.evals.embeddings import positive_ranks, retrieval_metrics, similarity_metrics
from fmjax.evals.features import collect
from fmjax.evals.few_shot import few_shot, ridge
from fmjax.evals.figure import Figure, mean_figure
from fmjax.evals.logistic import LinearClassifier, fit_logistic
from fmjax.evals.neighbours import Neighbours, knn, knn_votes, nearest
from fmjax.evals.patch_pca import PatchPca, patch_pca, principal_components
from fmjax.evals.perplexity import Perplexity, perplexity
from fmjax.evals.probe import Probe, linear_probe, sgd_probe
from fmjax.evals.questions import best_null_threshold, question_metrics, question_scores
from fmjax.evals.reconstruction import Reconstruction, as_images, reconstruction
from fmjax.evals.retrieval import Retrieval, retrieval
from fmjax.evals.sgd import fit_sgd
from fmjax.evals.tagging import tagging_metrics
from fmjax.evals.whitening import whiten
from fmjax.evals.zero_shot import TEMPLATES, class_embeddings, zero_shot, zero_shot_probabilities

__all__ = [
    "Figure",
    "LinearClassifier",
    "Neighbours",
    "PatchPca",
    "Perplexity",
    "Probe",
    "Reconstruction",
    "Retrieval",
    "TEMPLATES",
    "as_images",
    "best_null_threshold",
    "class_embeddings",
    "classification_intervals",
    "classification_metrics",
    "collect",
    "confusion_matrix",
    "few_shot",
    "fit_logistic",
    "fit_sgd",
    "interval",
    "knn",
    "knn_votes",
    "linear_probe",
    "mean_figure",
    "mean_interval",
    "multi_label_metrics",
    "nearest",
    "patch_pca",
    "perplexity",
    "positive_ranks",
    "principal_components",
    "question_metrics",
    "question_scores",
    "reconstruction",
    "regression_metrics",
    "retrieval",
    "retrieval_metrics",
    "ridge",
    "sgd_probe",
    "similarity_metrics",
    "sums_interval",
    "tagging_intervals",
    "tagging_metrics",
    "whiten",
    "zero_shot",
    "zero_shot_probabilities",
]
