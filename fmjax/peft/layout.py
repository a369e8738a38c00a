"""How a matrix in the published files is numbered with respect to ours."""

import math
from typing import NamedTuple

import numpy as np

from fmjax.peft.base import Weight


class Orders(NamedTuple):
    """Numbers in the file's matrix of our inputs and outputs.

    Attributes:
      inputs: int [in].
      outputs: int [prod(out)], our output axes flattened.
      inputs_first: the file's matrix is [in, out], as in an embedding or in GPT-2's Conv1D, and
        not PyTorch's [out, in].
    """

    inputs: np.ndarray
    outputs: np.ndarray
    inputs_first: bool


def orders(weight: Weight) -> Orders:
    """Asks the weights map where each row and column of the file's matrix goes.

    Matrices that hold their own row or column numbers are sent through it. They are broadcast
    views, so nothing of the matrix's size is allocated unless the map has to copy.
    """
    if weight.target.row.fused is not None or weight.inner == 3:
        # Experts in transformers' own layout and convolutions are plain.
        return Orders(np.arange(weight.inputs[-1]), np.arange(math.prod(weight.outputs)), False)
    rows, columns = weight.target.file_shape
    forward = weight.target.row.transform.forward
    shape = (rows, columns)
    row = forward(np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], shape))
    column = forward(np.broadcast_to(np.arange(columns, dtype=np.int32), shape))
    first_output = (slice(None), *(0,) * (row.ndim - 1))
    if np.unique(row[0]).size == rows == row[0].size:
        return Orders(column[first_output], row[0].reshape(-1), False)
    found = Orders(row[first_output], column[0].reshape(-1), True)
    return Orders(found.outputs, found.inputs, False) if weight.tied else found
