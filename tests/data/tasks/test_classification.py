"""Texts with classes or numbers, and what bad labels get."""

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks import balanced_weights, positive_weights, read_classification

MULTI, REGRESSION = "multi_label_classification", "regression"


def write(path, content):
    path.write_text(content)
    return path


def jsonl(path, labels):
    """Texts with these labels, as they are in JSON."""
    rows = [f'{{"text": "text {i}", "label": {label}}}\n' for i, label in enumerate(labels)]
    return write(path / "a.jsonl", "".join(rows))


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (['"ham"', '" spam "', '"ham"'], ("ham", "spam"), [0, 1, 0]),
        (["10", "2", "-1"], ("-1", "2", "10"), [2, 1, 0]),
        (["true", "false"], ("false", "true"), [1, 0]),
        (['"b10"', '"b2"', '"A"'], ("A", "b2", "b10"), [2, 1, 0]),
    ],
)
def test_single_label(tmp_path, labels, names, indices):
    data = read_classification(jsonl(tmp_path, labels))
    assert data.names == names and data.labels == indices and data.pairs is None
    assert data.problem_type == "single_label_classification"
    assert data.texts[1] == "text 1" and data.where(1).endswith("a.jsonl, line 2")
    some = data.select([1, 0])
    assert some.labels == indices[1::-1] and some.where(0).endswith("line 2")
    assert some.texts == ["text 1", "text 0"] and len(some) == 2


def test_validation_data_has_the_labels_of_the_training_data(tmp_path):
    names = ("neutral", "spam", "ham")
    data = read_classification(jsonl(tmp_path, ['"ham"', '"ham"']), labels=names)
    assert data.names == names and data.labels == [2, 2]


def test_columns_and_pairs(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\tc\tid\nx\ty\t1\t7\nu\tv\t0\t8\n")
    data = read_classification(path, "a", "c", pair_column="b")
    assert (data.texts, data.pairs, data.labels) == (["x", "u"], ["y", "v"], [1, 0])
    assert data.keys() == [("x", "y"), ("u", "v")]
    assert data.select([1]).pairs == ["v"]


def test_multi_label(tmp_path):
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    lists = jsonl(tmp_path, ['["b3", "b1", "b1"]', "[]", '["b2"]'])
    strings = write(tmp_path / "a.csv", "text,label\nx,b3|b1\ny,\nz, b2 \n")
    for path in (lists, strings):
        data = read_classification(path, problem_type=MULTI)
        assert data.labels == expected and data.names == ("b1", "b2", "b3")
    chosen = read_classification(lists, problem_type=MULTI, labels=["b3", "b2", "b1", "b0"])
    assert chosen.labels[0] == [1, 0, 1, 0]


def test_regression(tmp_path):
    data = read_classification(jsonl(tmp_path, ["1", "-2.5", '"3e-1"']), problem_type=REGRESSION)
    assert data.labels == [1.0, -2.5, 0.3] and data.names == ("label",)
    assert all(isinstance(label, float) for label in data.labels)
    several = jsonl(tmp_path, ["[1, 2.5]", "[0, 0]"])
    data = read_classification(several, problem_type=REGRESSION)
    assert data.labels == [[1.0, 2.5], [0.0, 0.0]] and data.names == ("label_0", "label_1")
    named = read_classification(several, problem_type=REGRESSION, labels=["x", "y"])
    assert named.names == ("x", "y")
    with pytest.raises(DataError, match="2 numbers a row .* but 1 names, x; name each"):
        read_classification(several, problem_type=REGRESSION, labels=["x"])


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (['"ham"', '"Spam"'], {"labels": ["ham", "spam"]}, r'line 2: label "Spam" in column '
         r'"label" is not one of the labels ham, spam; did you mean "spam"\?'),
        (['"ham"', '"eggs"'], {"labels": ["ham", "pi"]}, "of the labels ham, pi; correct it"),
        (['"ham"', '" "'], {}, 'line 2: the label in column "label" is empty; fill it in'),
        (['"ham"', "null"], {}, 'line 2: the label in column "label" is empty'),
        (['"ham"', '["spam"]'], {}, 'line 2: the label .* is a list; .*problem_type="multi_label'),
        (['"ham"', "{}"], {"problem_type": MULTI}, "line 2: the label .* is a dict"),
        (['["a"]', '["b", ""]'], {"problem_type": MULTI}, "line 2: the label .* is empty"),
        (['"ham"', '"ham"'], {}, 'holds only one class, "ham"; give examples of at least two'),
        (["[]", "[]"], {"problem_type": MULTI}, "holds no label; give examples"),
        ([i / 7 for i in range(60)], {}, 'holds 60 different numbers.*problem_type="regression"'),
        ([f'"{i}"' for i in range(60)], {}, "holds 60 different labels in 60 rows; name the col"),
        (['"a"'], {"labels": ["a", "b", "a"]}, r"names a class twice; name each once"),
        (['"a"'], {"problem_type": "ranking"}, 'problem_type="ranking" is unknown; use "single'),
        (["1", "NaN"], {"problem_type": REGRESSION}, "line 2: .* is nan, which is not finite"),
        (["1", "-Infinity"], {"problem_type": REGRESSION}, "line 2: .* is -inf, which is not fin"),
        (["1", '"high"'], {"problem_type": REGRESSION}, 'line 2: .* is "high", not a number'),
        (["1", '""'], {"problem_type": REGRESSION}, "line 2: .* is empty; write a number"),
        (["1", "true"], {"problem_type": REGRESSION}, "line 2: .* is a bool; write a number"),
        (["1", "[]"], {"problem_type": REGRESSION}, "line 2: .* is a list; write a number"),
        (["[1, 2]", "[1]"], {"problem_type": REGRESSION}, "line 2: 1 numbers .* first row has 2"),
    ],
)  # fmt: skip
def test_bad_labels(tmp_path, labels, options, message):
    with pytest.raises(DataError, match=message) as error:
        read_classification(jsonl(tmp_path, labels), **options)
    assert "a.jsonl" in str(error.value) or "twice" in message or "unknown" in message


def test_bad_columns_and_texts(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tclass\nx\t1\n \t0\n")
    with pytest.raises(DataError, match='no column "label"; it has text, class'):
        read_classification(path)
    with pytest.raises(DataError, match='a.tsv, line 3: the text in column "text" is empty'):
        read_classification(path, label_column="class")
    with pytest.raises(DataError, match='no column "other"'):
        read_classification(path, label_column="class", pair_column="other")


def test_movie_reviews():
    data = read_classification("movie_reviews:validation")
    assert data.names == ("negative", "positive") and set(data.labels) == {0, 1}
    assert data.report.dropped and data.report.kept == len(data)
    rated = read_classification(
        "movie_reviews:validation", label_column="rating", problem_type=REGRESSION
    )
    assert len(rated) == 400 and not rated.report.dropped


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A data set whose label is a ClassLabel and whose topics are a sequence of them."""
    import tensorflow_datasets as tfds

    class TinyLabelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["worse", "better", "best"]),
                "topics": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b"])),
                "score": np.float32,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(2), "test": self._generate_examples(-1)}

        def _generate_examples(self, label):
            for i in range(4):
                example = {"text": f"é {i}", "topics": [0, 1][: i % 3], "score": i / 2}
                yield i, example | {"label": label if i % 2 else min(label, 0)}

    builder = TinyLabelled(
        data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record"
    )
    builder.download_and_prepare()
    return builder.data_dir


def test_tfds(tfds_dir):
    data = read_classification(tfds_dir)
    assert data.names == ("worse", "better", "best")
    order = [int(text[2:]) for text in data.texts]  # TFDS shuffles
    assert data.labels == [2 if i % 2 else 0 for i in order]
    chosen = read_classification(f"{tfds_dir}:train", labels=["best", "worse"])
    assert chosen.labels == [0 if i % 2 else 1 for i in order]
    topics = read_classification(tfds_dir, label_column="topics", problem_type=MULTI)
    assert topics.names == ("a", "b")
    assert topics.labels == [[int(i % 3 > 0), int(i % 3 > 1)] for i in order]
    scores = read_classification(tfds_dir, label_column="score", problem_type=REGRESSION)
    assert scores.labels == [i / 2 for i in order]
    with pytest.raises(DataError, match='example 0: "label" is -1, which stands for no class'):
        read_classification(f"{tfds_dir}:test")


def test_weights():
    labels = [0, 0, 0, 1, 1, 2]
    weights = balanced_weights(labels, 3)
    np.testing.assert_allclose(weights, [2 / 3, 1, 2], rtol=1e-12)  # as scikit-learn's
    assert sum(weights[label] for label in labels) == pytest.approx(len(labels))
    assert balanced_weights([0, 2], 3)[1] == 0.0
    assert positive_weights([[1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 1, 1]]) == (1.0, 3.0, 1.0)
    with pytest.raises(DataError, match=r"are not within 0 … 1"):
        balanced_weights([0, 2], 2)
    with pytest.raises(DataError, match="not within"):
        balanced_weights([], 2)
