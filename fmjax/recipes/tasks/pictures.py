"""Pictures of how good a model's answers are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fmjax import report


class Shown(NamedTuple):
    """A picture, what it is called, and in words what it shows."""

    title: str
    picture: report.Picture
    alternative: str


def confusion_picture(matrix: Any, names: Sequence[str]) -> Shown:
    """The confusion matrix i[N, N]: row = label, column = prediction."""
    right, total = matrix.trace(), matrix.sum()
    return Shown(
        "Which label was taken for which",
        report.confusion_matrix(matrix, names),
        f"Confusion matrix of {len(names)} labels: {right} of {total} predictions are right.",
    )


def scores_picture(
    figures: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], title: str
) -> Shown:
    """Bars of figures between 0 and 1 with their intervals."""
    bars = [report.Bar(name, value, intervals.get(name)) for name, value in figures.items()]
    values = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    return Shown(title, report.bar_chart(bars, "", "scores"), f"Bars: {values}.")
