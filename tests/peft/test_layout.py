"""Adapters follow the weights map when it reorders a matrix."""

import numpy as np
import pytest

from fmjax.convert import TRANSPOSE, Chain, Fuse, Permute, Row, Split, targets
from fmjax.core.params import ParamSpec
from fmjax.peft.base import Weight
from fmjax.peft.layout import orders

IN, OUT = 4, 6
# Heads interleaved in the file, [out, in] → [in, 2, 3] and → [in, 6].
INTERLEAVED = Chain((Split(0, (3, 2)), Permute((2, 1, 0))))
CASES = {
    "linear": (TRANSPOSE, (IN, OUT), False),
    "square linear": (TRANSPOSE, (IN, IN), False),
    "one output": (TRANSPOSE, (IN, 1), False),
    "one input": (TRANSPOSE, (1, OUT), False),
    "conv1d": (Split(1, (2, 3)), (IN, 2, 3), True),
    "interleaved": (INTERLEAVED, (IN, 2, 3), False),
    "interleaved, fused again": (Chain((INTERLEAVED, Fuse(1, (2, 3)))), (IN, OUT), False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_factors_of_the_file_give_the_matrix_of_the_file(case):
    transform, shape, inputs_first = case
    spec = ParamSpec(shape, np.dtype("float32"), (None,) * len(shape))
    (target,) = targets([Row("m.weight", "m/kernel", transform)], {"m/kernel": spec})
    inputs, outputs, first = orders(Weight("m", ("m",), spec, target))
    assert first == inputs_first
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, shape[0])), rng.normal(size=(int(np.prod(shape[1:])), 2))
    theirs = b @ a  # ΔW of PEFT, [out, in]
    ours = np.tensordot(a[:, inputs].T, b[outputs].T.reshape(2, *shape[1:]), 1)
    np.testing.assert_allclose(transform.forward(theirs.T if first else theirs), ours)
