"""Pages that need nothing else, whatever text goes into them."""

import math
import re
import struct
from html.parser import HTMLParser

import pytest

from fmjax import report as html

VOID = {"meta", "br", "hr", "use", "path"}


class Balanced(HTMLParser):
    """Checks that every tag is closed in its order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_is_whole_and_escaped(tmp_path):
    nasty = "</pre><script>alert('&')</script>"
    chart = html.line_chart(
        [html.Series("a <b>", [0, 1], [2.0, 1.0]), html.Series("none", [], [])], "x", "y", "n"
    )
    page = html.page(
        nasty,
        nasty,
        html.section(nasty, html.note(nasty), html.code(nasty, nasty)),
        html.figure(chart, nasty, 'says "no"'),
        html.table(("", "n"), [(nasty, "1"), ("b", "−2.5")], nasty, {0: 1}),
        html.columns(html.samples(nasty, [(nasty, nasty)])),
    )
    html.write(tmp_path / "new" / "page.html", page)
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text and "http" not in text
    parser = Balanced()
    parser.feed(text.partition("\n")[2])
    assert not parser.open and parser.text.count(nasty) == 13
    assert "<strong>1</strong>" in text and 'class="number">−2.5' in text
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.html"]


def test_charts_follow_the_theme_and_differ_only_in_their_ids():
    points = html.Series("loss", [1, 2, 3], [3.0, 2.0, 1.5], dots=True)
    one, same, other = (
        html.line_chart([points], "step", "nats", name).svg() for name in ("a", "a", "b")
    )
    assert one == same != other
    assert "var(--series-1)" in one and not re.search(r"#(\d\d)\1\1\b", one)
    assert "xmlns" not in one and "step" in one and "nats" in one
    assert html.line_chart([], "step", "nats", "a").svg().startswith("<svg")


def texts(picture: html.Picture) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg())


def test_a_confusion_matrix_says_every_count_and_name():
    names = ["positive", "an endless name that nobody reads to its end", "$x$ & <y>"]
    found = texts(html.confusion_matrix([[7, 0, 1], [0, 12345, 0], [2, 0, 1_500_000]], names))
    assert {"7", "1", "2", "12k", "1.5M", "positive", "label", "predicted"} <= set(found)
    assert "an endless name tha…" in found and "$x$ &amp; &lt;y&gt;" in found
    assert "0" not in found


@pytest.mark.parametrize("classes", [2, 40])
def test_a_confusion_matrix_of_few_and_many_classes(classes):
    counts = [[1] * classes for _ in range(classes)]
    found = texts(html.confusion_matrix(counts, [f"class {i}" for i in range(classes)]))
    assert found.count("1") == classes**2 and found.count("class 1") == 2


def test_bars_say_their_values():
    bars = [html.Bar("PER", 0.91, (0.88, 0.94)), html.Bar("LOC", math.nan), html.Bar("ORG", 0.0)]
    found = texts(html.bar_chart(bars, "F1", "bars"))
    assert {"PER", "LOC", "ORG", "F1", "0.91", "–", "0.00"} <= set(found)


def test_a_picture_as_a_file(tmp_path):
    picture = html.confusion_matrix([[3, 1], [0, 2]], ["no", "yes"])
    html.write_picture(tmp_path / "new" / "matrix.png", picture, dpi=50)
    data = (tmp_path / "new" / "matrix.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == tuple(int(50 * inches) for inches in picture.size)


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    html.write(path, "old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        html.write(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
