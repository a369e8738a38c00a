"""Line charts as inline SVG whose colours follow the page's theme."""

import dataclasses
import io
import re
from collections.abc import Sequence

# Matplotlib draws in these stand-ins, which the SVG then reads from the page's style sheet.
_THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--rule)",
    "#030303": "var(--series-1)",
    "#040404": "var(--series-2)",
    "#050505": "var(--series-3)",
    "#060606": "var(--series-4)",
}
_INK, _RULE, *_COLOURS = _THEME


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: x and y of equal length; with `dots` every point is marked."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


def line_chart(series: Sequence[Series], x_label: str, y_label: str, name: str) -> str:
    """A chart of up to four series as an `<svg>` element.

    Args:
      series: drawn in order; those without points are left out.
      x_label, y_label: with units.
      name: tells the charts of one page apart, as their inner ids must differ.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif",
        "font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _RULE,
        "xtick.color": _RULE, "ytick.color": _RULE, "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK, "grid.color": _RULE, "axes.spines.top": False,
        "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.grid(axis="y", linewidth=0.6)
        for line, colour in zip((s for s in series if len(s.x)), _COLOURS, strict=False):
            marker = "o" if line.dots or len(line.x) == 1 else None
            axes.plot(line.x, line.y, color=colour, label=line.label, linewidth=1.6,
                      marker=marker, markersize=4)  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if axes.lines:
            axes.legend(frameon=False)
        out = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(out, metadata=metadata)
    svg = out.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # The page scales the chart, and HTML needs no namespaces.
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for stand_in, variable in _THEME.items():
        svg = svg.replace(stand_in, variable)
    return svg.strip()
