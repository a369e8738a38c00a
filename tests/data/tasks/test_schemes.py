"""Tag schemes: found, checked, converted, and read as entities."""

import pytest

from fmjax.core.errors import DataError
from fmjax.data.tasks.schemes import (
    Fault,
    detect,
    entities,
    first_fault,
    label_names,
    scheme_name,
    scheme_of_names,
    split_tag,
    to_bio,
)


def test_split_tag():
    assert split_tag("B-PER") == ("B", "PER")
    assert split_tag("I-geo-loc") == ("I", "geo-loc")
    assert split_tag("O") == ("O", "")
    for tag in ("NNP", "O-PER", "B-", "-PER", "b-PER", "-LRB-", "ADJ-x"):
        assert split_tag(tag) == ("", tag)


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        ([["B-PER", "I-PER", "O"], ["O", "B-LOC", "B-LOC"]], "BIO"),
        ([["I-PER", "I-PER", "O"], ["I-LOC", "B-LOC", "I-LOC"]], "IOB1"),
        ([["I-PER", "I-LOC"]], "IOB1"),
        ([["B-PER", "E-PER", "S-LOC", "O"], ["B-LOC", "I-LOC", "E-LOC"]], "IOBES"),
        ([["NOUN", "VERB"], ["O"]], "plain"),
        ([["PER", "O"]], "plain"),
        ([["O", "O"]], "BIO"),
    ],
)
def test_detect(sentences, scheme):
    assert detect(sentences) == scheme
    assert first_fault(sentences, scheme) is None
    assert first_fault(sentences, "plain") is None


@pytest.mark.parametrize(
    ("sentences", "place", "message"),
    [
        ([["B-PER"], ["O", "I-PER"]], (1, 1), '"I-PER" after "O" continues no entity, so that the '
         'tags are not BIO; write "B-PER", .*nor is the file IOB1'),
        ([["B-PER", "I-LOC"]], (0, 1), '"I-LOC" after "B-PER" continues no entity'),
        ([["O", "B-PER", "PER"]], (0, 2), 'tag "PER" has none of the prefixes B-, I- of BIO; write '
         'B-PER and I-PER, or .*scheme="plain"'),
        ([["B-PER", "L-PER"], ["U-LOC"]], (0, 1), "write L- as E- and U- as S-"),
        ([["O", "I-A"], ["B-A", "X-A"]], (1, 1), "X- is no prefix of BIO; write one of these"),
        ([["B-PER", "E-LOC"]], (0, 1), '"E-LOC" after "B-PER" continues no entity in IOBES; write '
         '"S-LOC"'),
        ([["S-PER", "I-PER", "E-PER"]], (0, 1), 'write "B-PER"'),
        ([["B-PER", "O", "S-PER"]], (0, 1), '"O" after "B-PER" leaves an entity without end in '
         'IOBES; write "S-PER" for "B-PER"'),
        ([["B-PER", "I-PER", "S-PER"]], (0, 2), 'write "E-PER" for "I-PER"'),
        ([["S-PER"], ["B-PER", "I-PER"]], (1, 1), 'the end after "I-PER" leaves an entity'),
    ],
)  # fmt: skip
def test_faults(sentences, place, message):
    fault = detect(sentences)
    assert isinstance(fault, Fault) and fault[:2] == place
    with pytest.raises(DataError, match=message):
        raise DataError(fault.problem)


def test_declared_schemes():
    assert first_fault([["I-PER"]], "BIO").problem.startswith('"I-PER" after "O"')
    assert "does not divide two PER entities" in first_fault([["B-PER"]], "IOB1").problem
    assert 'read the file with scheme="IOBES"' in first_fault([["S-PER"]], "BIO").problem
    assert scheme_name("iob2") == scheme_name("BIO") == "BIO"
    assert scheme_name("BIOES") == "IOBES" and scheme_name("Plain") == "plain"
    with pytest.raises(DataError, match='scheme="BILOU" is unknown; use BIO, IOB1, IOBES, plain'):
        scheme_name("BILOU")


def test_iob1_becomes_bio():
    tags = ["I-PER", "I-PER", "B-PER", "I-PER", "O", "I-LOC", "I-PER", "O"]
    bio = ["B-PER", "I-PER", "B-PER", "I-PER", "O", "B-LOC", "B-PER", "O"]
    assert to_bio(tags) == bio
    assert entities(tags, "IOB1") == entities(bio, "BIO")
    assert detect([bio]) == "BIO"


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        ("B-PER I-PER O B-LOC", "BIO", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", "BIO", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-LOC I-LOC", "BIO", [("PER", 0, 1), ("LOC", 1, 3)]),  # a model's mistakes
        ("O I-PER", "BIO", [("PER", 1, 2)]),
        ("S-PER B-LOC I-LOC E-LOC S-LOC", "IOBES", [("PER", 0, 1), ("LOC", 1, 4), ("LOC", 4, 5)]),
        ("B-PER O E-LOC I-LOC E-LOC", "IOBES", [("PER", 0, 1), ("LOC", 2, 3), ("LOC", 3, 5)]),
        ("S-PER I-PER", "IOBES", [("PER", 0, 1), ("PER", 1, 2)]),
        ("E-A E-A I-A", "IOBES", [("A", 0, 1), ("A", 1, 2), ("A", 2, 3)]),
        ("B-A L-A U-B I-B", "IOBES", [("A", 0, 2), ("B", 2, 3), ("B", 3, 4)]),  # BILOU
        ("B-geo-loc I-geo-loc", "BIO", [("geo-loc", 0, 2)]),  # a type may have hyphens
        ("NOUN O NOUN NOUN", "plain", [("NOUN", 0, 1), ("NOUN", 2, 3), ("NOUN", 3, 4)]),
        ("", "BIO", []),
        ("O O", "BIO", []),
    ],
)
def test_entities(tags, scheme, expected):
    assert entities(tags.split(), scheme) == expected


def test_label_names():
    assert label_names(["I-PER", "O", "B-LOC"], "BIO") == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert label_names(["S-X"], "IOBES") == ("O", "B-X", "I-X", "E-X", "S-X")
    assert label_names(["VERB", "NOUN"], "plain") == ("NOUN", "VERB")
    assert label_names(["X", "O", "A"], "plain") == ("O", "A", "X")
    for scheme in ("BIO", "IOBES", "plain"):
        assert scheme_of_names(label_names(["B-X"], scheme)) == (
            "BIO" if scheme == "plain" else scheme
        )
    assert scheme_of_names(["NOUN", "O"]) == scheme_of_names(["O"]) == "plain"
