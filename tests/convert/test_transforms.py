import numpy as np
import pytest

from fmjax.convert import IDENTITY, TRANSPOSE, Chain, Fuse, Permute, Split
from fmjax.core.errors import CheckpointError

# Meta's interleaved rotary layout: [heads · K/2 · 2, in] → rotate-half.
META = Chain((Split(0, (2, 3, 2)), Permute((0, 2, 1, 3)), Fuse(0, (2, 2, 3))))
CASES = [
    (IDENTITY, (4, 6), (4, 6)),
    (TRANSPOSE, (4, 6), (6, 4)),
    (Permute((2, 3, 1, 0)), (5, 4, 3, 2), (3, 2, 4, 5)),
    (Split(1, (3, 2)), (4, 6), (4, 3, 2)),
    (Split(0, (3, 2)), (6,), (3, 2)),
    (Fuse(0, (2, 3)), (2, 3, 4), (6, 4)),
    (Chain((TRANSPOSE, Split(1, (2, 3)))), (6, 4), (4, 2, 3)),
    (META, (12, 5), (12, 5)),
]


@pytest.mark.parametrize(("transform", "file", "param"), CASES, ids=str)
def test_forward_and_inverse_undo_each_other_and_shapes_agree(transform, file, param):
    x = np.arange(np.prod(file)).reshape(file)
    y = transform.forward(x)
    assert y.shape == param
    assert transform.file_shape(param) == file
    np.testing.assert_array_equal(transform.inverse(y), x)


@pytest.mark.parametrize(("transform", "file", "param"), CASES[:-1], ids=str)
def test_forward_moves_no_data(transform, file, param):
    x = np.zeros(file)
    assert np.shares_memory(transform.forward(x), x)


@pytest.mark.parametrize(
    ("transform", "shape"), [(TRANSPOSE, (2,)), (Split(0, (2, 3)), (3, 2)), (Fuse(0, (2, 3)), (5,))]
)
def test_a_shape_that_does_not_fit_raises(transform, shape):
    with pytest.raises(CheckpointError, match="does not fit the layout"):
        transform.file_shape(shape)
