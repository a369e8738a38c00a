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
from fmjax.evals.perplexity import Perplexity, perplexity
from fmjax.evals.questions import best_null_threshold, question_metrics, question_scores
from fmjax.evals.tagging import tagging_metrics

__all__ = [
    "Perplexity",
    "best_null_threshold",
    "classification_intervals",
    "classification_metrics",
    "confusion_matrix",
    "interval",
    "mean_interval",
    "multi_label_metrics",
    "perplexity",
    "positive_ranks",
    "question_metrics",
    "question_scores",
    "regression_metrics",
    "retrieval_metrics",
    "similarity_metrics",
    "sums_interval",
    "tagging_intervals",
    "tagging_metrics",
]
