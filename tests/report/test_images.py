"""Images in pages and as files."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from fmjax import report


def pixels(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def decoded(html):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    ]


def test_small_images_are_exact_and_large_ones_reduced():
    small, large = pixels(8, 6), pixels(300, 450)
    quoted = report.Tile(small, 'a "b" <i>\nline two', "query")
    html = report.sheet([[quoted, report.Tile(large)], [report.Tile(small[..., 0], kind="wrong")]])
    first, second, grey = decoded(html)
    np.testing.assert_array_equal(first, small)
    assert second.shape == (149, 224, 3)
    np.testing.assert_array_equal(grey, np.repeat(small[..., :1], 3, -1))
    assert "<i>" not in html and 'class="query"' in html and 'class="wrong"' in html
    assert 'alt="a &quot;b&quot; &lt;i&gt;, line two"' in html and "<br>line two" in html
    assert html.count('class="sheet"') == 2 and html.count('class="pixels"') == 2


def test_grids_keep_every_image():
    a, b = pixels(4, 6), pixels(3, 2)
    found = report.grid([[a, b], [b]], gap=1, paper=200)
    assert found.shape == (9, 13, 3)
    np.testing.assert_array_equal(found[:4, :6], a)
    np.testing.assert_array_equal(found[:3, 7:9], b)
    np.testing.assert_array_equal(found[5:8, :2], b)
    assert (found[4] == 200).all() and (found[5:, 7:] == 200).all()


def test_heat_is_light_where_values_are_high():
    grey = np.full((8, 12, 3), 128, np.uint8)
    found = report.heat(grey, [[0.0, 0.1, 0.9]], strength=1.0).astype(int).sum(-1)
    assert found[:, -1].min() > found[:, 5].max() > found[:, 0].max()
    np.testing.assert_array_equal(report.heat(grey, np.eye(2), strength=0.0), grey)
    assert report.heat(grey, np.zeros((2, 2))).std() < 40


def test_files_appear_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "grid.png"
    report.write_image(path, pixels(70, 3))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels(70, 3))

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        report.write_image(path, pixels(5, 5))
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("shape", [(3, 4, 2), (4,), (0, 3, 3)])
def test_what_is_no_image(shape):
    with pytest.raises(ValueError, match="an image is u8"):
        report.image(np.zeros(shape, np.uint8), "")
    with pytest.raises(ValueError, match="at least one image"):
        report.grid([])
