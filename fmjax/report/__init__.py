"""Reports as one HTML file each, with nothing to fetch."""

from fmjax.report.chart import Series, line_chart
from fmjax.report.page import code, columns, figure, note, page, samples, section, table, write

__all__ = [
    "Series",
    "code",
    "columns",
    "figure",
    "line_chart",
    "note",
    "page",
    "samples",
    "section",
    "table",
    "write",
]
