"""Pages that need nothing else, whatever text goes into them."""

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
    one, same, other = (html.line_chart([points], "step", "nats", n).svg() for n in ("a", "a", "b"))
    assert one == same != other
    assert "var(--series-1)" in one and "#010101" not in one and "xmlns" not in one
    assert "step" in one and "nats" in one
    assert html.line_chart([], "step", "nats", "a").svg().startswith("<svg")


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    html.write(path, "old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        html.write(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_confusion_matrices_write_what_occurs():
    names = ["cat", "a name that is much too long to fit <b>"]
    svg = html.confusion_matrix([[12034, 7], [0, 0]], names).svg()
    assert "12k" in svg and ">7<" in svg and "a name that is much…" in svg and "<b>" not in svg
    assert "var(--series-1)" in svg and "var(--paper)" in svg and "#0" not in svg
    assert "min-width: 0px" in svg
    many = html.confusion_matrix([[i == j for i in range(40)] for j in range(40)], ["x"] * 40)
    assert many.least > 700 and many.svg().count(">1<") == 40


def test_bars_with_and_without_intervals():
    nan = float("nan")
    bars = [html.Bar("PER", 0.93, (0.9, 0.95)), html.Bar("none", nan, (nan, nan)),
            html.Bar("LOC", 0.5)]  # fmt: skip
    svg = html.bar_chart(bars, "F1", "f1").svg()
    assert all(text in svg for text in ("PER", "LOC", "0.93", "0.50", "–", "F1"))
    assert html.bar_chart([], "F1", "f1", end=None).svg().startswith("<svg")


def test_a_picture_as_a_file(tmp_path):
    from matplotlib.image import imread

    path = tmp_path / "new" / "matrix.png"
    html.write_picture(path, html.confusion_matrix([[1, 0], [0, 1]], "ab"), dpi=50)
    pixels = imread(path)[..., :3]
    colours = {tuple((255 * p).round().astype(int)) for p in pixels.reshape(-1, 3)}
    assert {(0xFC, 0xFC, 0xFB), (0x0B, 0x6E, 0x8A)} <= colours  # paper and series-1, light
