import numpy as np
import pytest

from fmjax.core import tree
from fmjax.core.errors import ConfigError

TREE = {"a": {"kernel": 1, "bias": 2}, "b": {"c": {"kernel": 3}}}


def test_flatten_and_unflatten_are_inverses() -> None:
    flat = tree.flatten(TREE)
    assert flat == {"a/kernel": 1, "a/bias": 2, "b/c/kernel": 3}
    assert tree.unflatten(flat) == TREE


def test_map_with_path_walks_trees_together() -> None:
    out = tree.map_with_path(lambda path, x, y: (path, x + y), TREE, TREE)
    assert out["b"]["c"]["kernel"] == ("b/c/kernel", 6)


def test_match_rules_takes_the_first_match() -> None:
    out = tree.match_rules([("bias$", "x"), (".*", "y")], TREE)
    assert out == {"a": {"kernel": "y", "bias": "x"}, "b": {"c": {"kernel": "y"}}}


def test_match_rules_names_an_uncovered_path() -> None:
    with pytest.raises(ConfigError, match="b/c/kernel"):
        tree.match_rules([("^a/", 1)], TREE)


def test_partition_and_combine_are_inverses() -> None:
    mask = tree.map_with_path(lambda path, _: path.endswith("kernel"), TREE)
    selected, rest = tree.partition(TREE, mask)
    assert rest == {"a": {"bias": 2}}
    assert tree.flatten(tree.combine(selected, rest)) == tree.flatten(TREE)


def test_combine_refuses_overlap() -> None:
    with pytest.raises(ConfigError, match="a/kernel"):
        tree.combine(TREE, TREE)


def test_sizes() -> None:
    arrays = {"a": np.zeros((2, 3), "f4"), "b": np.zeros(5, "i1")}
    assert tree.count(arrays) == 11
    assert tree.nbytes(arrays) == 29
