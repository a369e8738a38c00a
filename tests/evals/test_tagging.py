"""Entities as conlleval and seqeval read them."""

import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.evals import tagging_metrics


def test_against_seqeval():
    """Of random tags, broken rules included; the figures are those of seqeval 1.2.2."""
    names = "O B-PER I-PER B-LOC I-LOC E-LOC S-LOC".split()
    rng = np.random.RandomState(0)
    labels = [[names[i] for i in rng.randint(len(names), size=n)] for n in range(1, 60)]
    predictions = [[t if rng.rand() < 0.7 else names[rng.randint(len(names))] for t in row]
                   for row in labels]  # fmt: skip
    found = tagging_metrics(labels, predictions)
    assert {name: found[name] for name in SEQEVAL} == pytest.approx(SEQEVAL, abs=1e-9)


SEQEVAL = {
    "accuracy": 0.7338983050847457,
    "precision": 0.7055167055167055,
    "recall": 0.699537750385208,
    "f1": 0.702514506769826,
    "macro_f1": 0.6949720291574844,
    "precision/PER": 0.6666666666666666,
    "recall/PER": 0.6793349168646081,
    "f1/PER": 0.6729411764705884,
    "support/PER": 421.0,
    "precision/LOC": 0.7249417249417249,
    "recall/LOC": 0.7092360319270239,
    "f1/LOC": 0.7170028818443804,
    "support/LOC": 877.0,
}


def test_by_hand():
    labels = ["B-A I-A O B-B".split(), "O O".split()]
    predictions = ["B-A O O B-B".split(), "B-C O".split()]
    found = tagging_metrics(labels, predictions)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((1 / 3, 1 / 2, 0.4))
    assert found["macro_f1"] == pytest.approx(1 / 3)
    assert (found["f1/B"], found["support/C"], found["precision/C"]) == (1.0, 0.0, 0.0)


def test_no_entities_at_all():
    found = tagging_metrics([["O"], []], [["O"], []])
    assert found == {
        "accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "macro_f1": 0.0
    }  # fmt: skip
    assert tagging_metrics([[]], [[]])["accuracy"] == 0.0


def test_errors():
    with pytest.raises(DataError, match="tag 'NOUN' is neither O nor B-"):
        tagging_metrics([["NOUN"]], [["NOUN"]])
    with pytest.raises(DataError, match="sentence 1 has 2 labels and 1 predictions"):
        tagging_metrics([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(DataError, match="no example"):
        tagging_metrics([], [])
