"""Reports as one HTML file each, with nothing to fetch."""

from fmjax.report.chart import Bar, Series, bar_chart, line_chart
from fmjax.report.confusion import confusion_matrix
from fmjax.report.images import Tile, grid, heat, image, reduced, sheet, write_image
from fmjax.report.page import code, columns, figure, note, page, samples, section, table, write
from fmjax.report.picture import Picture, write_picture

__all__ = [
    "Bar",
    "Picture",
    "Series",
    "Tile",
    "bar_chart",
    "code",
    "columns",
    "confusion_matrix",
    "figure",
    "grid",
    "heat",
    "image",
    "line_chart",
    "note",
    "page",
    "reduced",
    "samples",
    "section",
    "sheet",
    "table",
    "write",
    "write_image",
    "write_picture",
]
