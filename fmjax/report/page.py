"""The pieces of a report page. Every text that goes in is escaped here."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from fmjax.report.picture import Picture


def page(title: str, lead: str, *sections: str) -> str:
    """A whole HTML document with its style sheet inside."""
    css = resources.files("fmjax.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def note(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def code(text: str, title: str = "") -> str:
    """A block of code or commands, under a small heading if it has a title."""
    heading = f"<h3>{escape(title)}</h3>\n" if title else ""
    return f"{heading}<pre><code>{escape(text)}</code></pre>"


def figure(picture: Picture, caption: str, alternative: str) -> str:
    """A picture. `alternative` says in words what it shows, for those who cannot see it."""
    return (
        f'<figure role="group"><div role="img" aria-label="{escape(alternative)}">'
        f"{picture.svg()}</div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    best: Mapping[int, int] | None = None,
) -> str:
    """A table; the first column names the rows, and columns of numbers are set right.

    Args:
      headers: of the columns.
      rows: their cells, as text.
      caption: what the table shows.
      best: row → column of a cell to set strong.
    """
    numeric = [
        i > 0 and all(row[i][:1].isdigit() or row[i][:1] in "-−+" for row in rows)
        for i in range(len(headers))
    ]

    def kind(i: int) -> str:
        return ' class="number"' if numeric[i] else ""

    head = "".join(f'<th scope="col"{kind(i)}>{escape(h)}</th>' for i, h in enumerate(headers))
    body = []
    for r, (first, *rest) in enumerate(rows):
        cells = [f'<th scope="row">{escape(first)}</th>']
        for c, cell in enumerate(rest, 1):
            text = escape(cell)
            if best is not None and best.get(r) == c:
                text = f"<strong>{text}</strong>"
            cells.append(f"<td{kind(c)}>{text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def samples(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Generated text: (prompt, continuation) pairs."""
    quotes = "".join(
        f'<blockquote><p><span class="prompt">{escape(prompt)}</span>{escape(text)}'
        "</p></blockquote>"
        for prompt, text in pairs
    )
    return f"<div><h3>{escape(title)}</h3>{quotes}</div>"


def columns(*parts: str) -> str:
    """Parts side by side where the page is wide enough, else one under the other."""
    return f'<div class="columns">{"".join(parts)}</div>'


def write(path: str | Path, html: str) -> None:
    """Writes a page in one moment, so that a reader never sees half of it.

    Bytes of file names that are no UTF-8 are shown as \\udc80 … \\udcff.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".incomplete-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(html)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
