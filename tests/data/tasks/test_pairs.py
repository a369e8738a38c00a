"""Pairs of texts: columns, negatives, scores, and what bad ones get."""

import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks import read_pairs


def tsv(path, header, *rows):
    path = path / "a.tsv"
    path.write_text("\n".join("\t".join(row.split()) for row in (header, *rows)))
    return path


@pytest.mark.parametrize(
    "header", ["anchor positive", "sentence1 sentence2", "query positive", "question answer",
               "text pair", "anchor positive text pair"],
)  # fmt: skip
def test_columns(tmp_path, header):
    pairs = read_pairs(tsv(tmp_path, header, "a b c d", "e f g h") if "text pair" in header[5:]
                       else tsv(tmp_path, header, "a b", "e f"))  # fmt: skip
    assert (pairs.anchors, pairs.positives) == (["a", "e"], ["b", "f"])
    assert pairs.negatives is None and pairs.scores is None and pairs.score_scale is None
    assert pairs.where(1).endswith("a.tsv, line 3") and pairs.keys()[1] == ("e", "f")


def test_named_columns(tmp_path):
    path = tsv(tmp_path, "x y n1 n2 anchor positive", "a b c d - -", "e f g h - -")
    pairs = read_pairs(path, "x", "y", ["n1", "n2"])
    assert (pairs.anchors, pairs.positives) == (["a", "e"], ["b", "f"])
    assert pairs.negatives == [["c", "d"], ["g", "h"]]
    some = pairs.select([1])
    assert some.negatives == [["g", "h"]] and some.anchors == ["e"] and len(some) == 1


def test_negatives(tmp_path):
    assert read_pairs(tsv(tmp_path, "query positive negative", "a b c")).negatives == [["c"]]
    path = tmp_path / "a.jsonl"
    path.write_text('{"anchor": "a", "positive": "b", "negative": ["c", "d"]}\n')
    assert read_pairs(path).negatives == [["c", "d"]]


def test_scores(tmp_path):
    path = tsv(tmp_path, "sentence1 sentence2 score", "a b 4", "c d 1", "e f 0")
    pairs = read_pairs(path)
    assert pairs.scores == [1.0, 0.25, 0.0] and pairs.score_scale == 4.0
    assert read_pairs(path, score_scale=5).scores == [0.8, 0.2, 0.0]
    assert pairs.select([1]).scores == [0.25]
    small = tsv(tmp_path, "sentence1 sentence2 score", "a b 0.5", "c d 0.25")
    assert read_pairs(small).scores == [0.5, 0.25] and read_pairs(small).score_scale == 1.0
    # Of other pairs a score is not known to be one of likeness.
    other = tsv(tmp_path, "query positive score", "a b 7")
    assert read_pairs(other).scores is None
    assert read_pairs(other, "query", score_column="score").scores == [1.0]


@pytest.mark.parametrize(
    ("header", "row", "options", "message"),
    [
        ("a b", "x y", {}, "a.tsv: no columns anchor and positive; it has a, b; name the two"),
        ("text pair question answer", "a b c d", {}, "several pairs of texts; .* name the two"),
        ("a b", "x y", {"anchor_column": "c"}, 'no column "c"; it has a, b'),
        ("anchor positive", "x y", {"score_column": "score"}, 'no column "score"'),
        ("anchor positive", "x y", {"negative_column": "n"}, 'no column "n"'),
        ("anchor positive", "x y", {"negative_column": "n", "score_column": "s"}, "do not go tog"),
        ("sentence1 sentence2 score", "x y -1", {}, "line 3: the score -1 .* not within 0 … 1"),
        ("sentence1 sentence2 score", "x y nan", {}, "line 3: .* is nan, which is not finite"),
        ("sentence1 sentence2 score", "x y z", {}, 'line 3: .* is "z", not a number'),
        ("sentence1 sentence2 score", "x y 6", {"score_scale": 5}, "line 3: the score 6 .*0 … 5"),
    ],
)
def test_bad_pairs(tmp_path, header, row, options, message):
    good = row.rsplit(" ", 1)[0] + " 1"
    with pytest.raises(DataError, match=message):
        read_pairs(tsv(tmp_path, header, good, row), **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"anchor": "a", "positive": "", "negative": ["x"]}', 'line 2: the text in column "pos'),
        ('{"anchor": "a", "positive": "b", "negative": [" "]}', "line 2: .* a negative that is em"),
        ('{"anchor": "a", "positive": "b", "negative": [1]}', "line 2: .* a negative that is empt"),
        ('{"anchor": "a", "positive": "b", "negative": []}', "line 2: 0 negatives where the first"),
        ('{"anchor": "a", "positive": "b", "negative": "x"}', None),
        ('{"anchor": "a", "positive": "b"}', 'line 2: no field "negative"'),
    ],
)
def test_bad_negatives(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"anchor": "a", "positive": "b", "negative": ["c"]}\n' + row)
    if message is None:
        assert read_pairs(path).negatives == [["c"], ["x"]]
        return
    with pytest.raises(DataError, match=message):
        read_pairs(path)
