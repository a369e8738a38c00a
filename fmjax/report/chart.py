"""Line charts and bar charts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fmjax.report.picture import Colours, Picture
from fmjax.report.text import shortened


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: x and y of equal length; with `dots` every point is marked."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


def line_chart(series: Sequence[Series], x_label: str, y_label: str, name: str) -> Picture:
    """A chart of up to four series.

    Args:
      series: drawn in order; those without points are left out.
      x_label, y_label: with units.
      name: tells the pictures of one page apart.
    """

    def draw(figure: Any, colours: Colours) -> None:
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        for line, colour in zip((s for s in series if len(s.x)), colours.series, strict=False):
            marker = "o" if line.dots or len(line.x) == 1 else None
            axes.plot(line.x, line.y, color=colour, label=line.label, linewidth=1.6,
                      marker=marker, markersize=4)  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if axes.lines:
            axes.legend(frameon=False)

    return Picture(draw, (6.4, 3.2), name)


@dataclasses.dataclass(frozen=True)
class Bar:
    """One value, and the interval in which it lies, if that is known."""

    label: str
    value: float
    interval: tuple[float, float] | None = None


def bar_chart(bars: Sequence[Bar], x_label: str, name: str, *, end: float | None = 1.0) -> Picture:
    """Horizontal bars from 0, one under the other, each with its value.

    Args:
      bars: drawn from the top; values that are not finite have no bar.
      x_label: of the values, with units.
      name: tells the pictures of one page apart.
      end: of the axis; None fits the values.
    """

    def draw(figure: Any, colours: Colours) -> None:
        axes = figure.add_subplot()
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        for row, bar in enumerate(bars):
            known = bar.value == bar.value
            value = bar.value if known else 0.0
            axes.barh(row, value, height=0.62, color=colours.series[0], alpha=0.75, linewidth=0)
            low, high = bar.interval or (value, value)
            if high > low:
                axes.plot([low, high], [row, row], color=colours.ink, linewidth=1.2,
                          solid_capstyle="butt", marker="|", markersize=6)  # fmt: skip
            axes.annotate(f"{bar.value:.2f}" if known else "–", (max(value, high), row), (5, 0),
                          textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
        axes.set_yticks(range(len(bars)), [shortened(bar.label, 24) for bar in bars])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, end)
        axes.set_xlabel(x_label)

    return Picture(draw, (6.4, 0.9 + 0.26 * max(len(bars), 1)), name)
