"""NumPy and bytes as the values of JSON."""

import numpy as np

from fmjax.data.tasks.values import plain


def test_plain():
    row = {
        "words": np.array([b"na\xc3\xafve", b"x"], object),
        "nested": {"at": np.array([[1, 2]], np.int32), "ok": np.bool_(True)},
        "score": np.float32(0.5),
        "rest": ("a", None, 3, np.array(7)),
    }
    got = plain(row)
    assert got == {
        "words": ["naïve", "x"],
        "nested": {"at": [[1, 2]], "ok": True},
        "score": 0.5,
        "rest": ["a", None, 3, 7],
    }
    assert type(got["nested"]["ok"]) is bool and type(got["score"]) is float
