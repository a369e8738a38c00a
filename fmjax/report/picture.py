"""Pictures that are drawn once and shown in a page, whose theme they follow, or as a file.

Matplotlib draws in the colours that it is given. For a page these are stand-ins, which the SVG then
reads from the page's style sheet; for a file they are those of the light theme.
"""

import dataclasses
import functools
import io
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Colours:
    """What a picture is drawn in: text, lines and grid, background, and series of data."""

    ink: str
    rule: str
    paper: str
    series: tuple[str, ...]


_VARIABLES = ("ink", "rule", "paper", "series-1", "series-2", "series-3", "series-4")
_STAND_INS = {f"#{i:02d}{i:02d}{i:02d}": name for i, name in enumerate(_VARIABLES, 1)}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing that is not yet drawn.

    Attributes:
      draw: (figure, colours) → None, paints on a Matplotlib figure.
      size: (width, height) in inches.
      name: tells the pictures of one page apart, as their inner ids must differ.
      least: pixels of width below which a page scrolls the picture rather than shrink it.
    """

    draw: Callable[[Any, Colours], None]
    size: tuple[float, float]
    name: str
    least: int = 0

    def svg(self) -> str:
        """An `<svg>` element whose colours follow the page's theme."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        out = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        self._render(
            _colours(_STAND_INS),
            lambda figure: FigureCanvasSVG(figure).print_svg(out, metadata=metadata),
        )
        svg = out.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        # The page scales the picture, and HTML needs no namespaces.
        svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
        svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
        for stand_in, name in _STAND_INS.items():
            svg = svg.replace(stand_in, f"var(--{name})")
        # As wide as the page, but its text not much larger than the page's.
        widths = f"min-width: {self.least}px; max-width: {self.size[0] * 110:.0f}px"
        return svg.replace("<svg", f'<svg style="{widths}"', 1).strip()

    def _render(self, colours: Colours, write: Callable[[Any], None]) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        style = {
            "svg.fonttype": "none", "svg.hashsalt": self.name, "font.family": "sans-serif",
            "font.size": 10, "text.color": colours.ink, "axes.labelcolor": colours.ink,
            "axes.edgecolor": colours.rule, "xtick.color": colours.rule,
            "ytick.color": colours.rule, "xtick.labelcolor": colours.ink,
            "ytick.labelcolor": colours.ink, "grid.color": colours.rule,
            "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
        }  # fmt: skip
        with matplotlib.rc_context(style):
            figure = Figure(figsize=self.size, layout="constrained")
            figure.patch.set_visible(False)
            self.draw(figure, colours)
            for axes in figure.axes:
                axes.patch.set_visible(False)
            write(figure)


def write_picture(path: str | Path, picture: Picture, *, dpi: int = 160) -> None:
    """Writes a picture as a PNG file in the light theme.

    Args:
      path: of the file; its directory is made.
      picture: from `line_chart`, `bar_chart` or `confusion_matrix`.
      dpi: pixels an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = _colours({colour: name for name, colour in _light().items()})

    def write(figure: Any) -> None:
        figure.patch.set(visible=True, facecolor=colours.paper)
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(path)

    picture._render(colours, write)


def _colours(names: dict[str, str]) -> Colours:
    by_name = {name: colour for colour, name in names.items()}
    ink, rule, paper, *series = (by_name[name] for name in _VARIABLES)
    return Colours(ink, rule, paper, tuple(series))


@functools.cache
def _light() -> dict[str, str]:
    """{name: colour} of the style sheet's first, light, theme."""
    css = resources.files("fmjax.report").joinpath("style.css").read_text(encoding="utf-8")
    light = css[: css.index("@media")]
    return dict(re.findall(r"--([\w-]+): (#\w{6})", light))
