"""Confusion matrices."""

from collections.abc import Sequence
from typing import Any

from fmjax.report.picture import Colours, Picture
from fmjax.report.text import shortened

_DARK = 0.55
"""From this share of its row on, a cell is dark and its number light."""


def confusion_matrix(
    counts: Any, names: Sequence[str], name: str = "confusion", *, longest: int = 20
) -> Picture:
    """Counts of examples by their label (rows) and prediction (columns), 2 to 40 classes.

    A cell is the darker, the larger its share of its row; so frequent and rare classes compare.

    Args:
      counts: [N, N], row = label, column = prediction.
      names: of the N classes.
      name: tells the pictures of one page apart.
      longest: characters from which on a name is cut.
    """
    classes = len(names)
    # Inches: cells as large as the page allows, but not larger than is needed to be read.
    cell = max(0.3, min(0.8, 4.6 / classes))
    labels = [shortened(str(n), longest) for n in names]
    margin = 0.75 + 0.085 * max(map(len, labels))
    # Names of one or two letters fit under their column.
    upright = max(map(len, labels)) * 0.085 > cell
    bottom = margin if upright else 0.7
    size = (max(margin + cell * classes + 0.15, 3.2), bottom + cell * classes + 0.15)

    def draw(figure: Any, colours: Colours) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        axes.set_aspect("equal", anchor="NW")
        axes.set_xlim(-0.5, classes - 0.5)
        axes.set_ylim(classes - 0.5, -0.5)
        for row in range(classes):
            total = max(sum(int(n) for n in counts[row]), 1)
            for column in range(classes):
                count = int(counts[row][column])
                if not count:
                    continue
                share = count / total
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(
                    Rectangle(corner, 1, 1, facecolor=colours.series[0], alpha=share, linewidth=0)
                )
                text = _short(count)
                axes.text(column, row, text, ha="center", va="center",
                          fontsize=min(10, cell * 72 * 0.42, cell * 72 * 1.45 / len(text)),
                          color=colours.paper if share > _DARK else colours.ink)  # fmt: skip
        # The diagonal is where the right ones lie.
        for i in range(classes):
            axes.add_patch(
                Rectangle(
                    (i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=colours.rule, linewidth=0.8
                )  # fmt: skip
            )
        small = {"fontsize": min(10, cell * 72 * 0.5)}
        axes.set_xticks(range(classes), labels, rotation=90 if upright else 0, **small)
        axes.set_yticks(range(classes), labels, **small)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")

    # A point of the picture is a pixel of the page at least, so that numbers stay readable.
    return Picture(draw, size, name, least=round(size[0] * 72) if size[0] > 8 else 0)


def _short(count: int) -> str:
    """At most four characters: 9999, 12k, 1.2M."""
    if count < 10_000:
        return str(count)
    if count < 1_000_000:
        return f"{count // 1000}k"
    return f"{count / 1e6:.1f}M" if count < 10_000_000 else f"{count // 1_000_000}M"
