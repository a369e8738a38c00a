"""How a tensor in a file and a parameter in memory are laid out with respect to each other.

`forward` turns the file's array into the parameter's, `inverse` turns it back, and `file_shape`
says which shape the file must hold. Both directions only move strides about (numpy views), so
that `forward(memory_mapped)[index]` reads from the disk nothing but the slice that is wanted.
A `Fuse` of permuted axes is the exception: numpy copies that one tensor first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fmjax.core.errors import CheckpointError

Shape = tuple[int, ...]


class Transform(Protocol):
    """A layout change with an inverse; all methods are pure."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """File layout → parameter layout."""
        ...

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """Parameter layout → file layout."""
        ...

    def file_shape(self, shape: Shape) -> Shape:
        """Shape in the file of a parameter of `shape`; raises CheckpointError if it cannot be."""
        ...


def _misfit(transform: Transform, shape: Shape) -> CheckpointError:
    return CheckpointError(
        f"a parameter of shape {tuple(shape)} does not fit the layout {transform}; "
        "the parameters do not belong to this configuration"
    )


@dataclass(frozen=True)
class Identity:
    """The file holds the parameter as it is."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return x

    def file_shape(self, shape: Shape) -> Shape:
        return tuple(shape)


@dataclass(frozen=True)
class Permute:
    """Reorders axes: parameter axis i is file axis `axes[i]`, as in `np.transpose`."""

    axes: tuple[int, ...]

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(self.axes)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(np.argsort(self.axes))

    def file_shape(self, shape: Shape) -> Shape:
        if len(shape) != len(self.axes):
            raise _misfit(self, shape)
        return tuple(shape[i] for i in np.argsort(self.axes))


@dataclass(frozen=True)
class Split:
    """The file's axis `axis` is several axes of the parameter, of the given `sizes`."""

    axis: int
    sizes: tuple[int, ...]

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[: self.axis], *self.sizes, *x.shape[self.axis + 1 :])

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.file_shape(x.shape))

    def file_shape(self, shape: Shape) -> Shape:
        end = self.axis + len(self.sizes)
        if tuple(shape[self.axis : end]) != self.sizes:
            raise _misfit(self, shape)
        return (*shape[: self.axis], math.prod(self.sizes), *shape[end:])


@dataclass(frozen=True)
class Fuse:
    """Several axes of the file, of the given `sizes`, are the parameter's axis `axis`."""

    axis: int
    sizes: tuple[int, ...]

    def forward(self, x: np.ndarray) -> np.ndarray:
        return Split(self.axis, self.sizes).inverse(x)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return Split(self.axis, self.sizes).forward(x)

    def file_shape(self, shape: Shape) -> Shape:
        if shape[self.axis : self.axis + 1] != (math.prod(self.sizes),):
            raise _misfit(self, shape)
        return (*shape[: self.axis], *self.sizes, *shape[self.axis + 1 :])


@dataclass(frozen=True)
class Chain:
    """Transforms in the order in which they lead from the file to the parameter."""

    steps: Sequence[Transform]

    def forward(self, x: np.ndarray) -> np.ndarray:
        for step in self.steps:
            x = step.forward(x)
        return x

    def inverse(self, x: np.ndarray) -> np.ndarray:
        for step in reversed(self.steps):
            x = step.inverse(x)
        return x

    def file_shape(self, shape: Shape) -> Shape:
        for step in reversed(self.steps):
            shape = step.file_shape(shape)
        return shape


IDENTITY = Identity()
TRANSPOSE = Permute((1, 0))
