"""Features as MAE's linear probe normalises them, and further: centred, turned, of one variance.

Shapes: M vectors of the bank, Q queries, D width, C components.
"""

from typing import Any

import numpy as np

from fmjax.core.errors import ConfigError
from fmjax.evals.features import checked, same_width

# Share of the largest variance that rounding of float32 features leaves where there is none.
_NOTHING = 1e-10


def whiten(bank: Any, queries: Any, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Both by the principal components of the bank, each brought to variance 1 there.

    Cosines of vectors that share a large part, such as what position embeddings add to all images,
    say little; here it is taken away, and no direction outweighs the others.

    Args:
      bank: f[M, D], such as training examples.
      queries: f[Q, D].
      components: C at most; those of the largest variance stay. Directions in which the bank does
        not vary, as one is behind every layer norm, are left out.

    Returns:
      (bank f32[M, C], queries f32[Q, C]); one column of zeros where all of the bank is one vector.

    Raises:
      DataError: no vector, or vectors of different lengths.
      ConfigError: components out of range.
    """
    from sklearn.decomposition import PCA

    bank, queries = checked(bank, "bank"), checked(queries, "query")
    same_width(queries, bank, "query", "bank")
    most = min(len(bank) - 1, bank.shape[1])
    if not 1 <= components <= most:
        raise ConfigError(
            f"{components} components: {len(bank)} vectors of width {bank.shape[1]} have at "
            f"least 1 and at most {most}"
        )
    # In float64: squares of small directions beside those of large ones.
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    if (bank == bank[0]).all():  # a collapsed encoder, which is to be measured too
        return tuple(np.zeros((len(x), 1), np.float32) for x in (bank, queries))
    turn = PCA(components, whiten=True, random_state=0).fit(bank)
    varies = turn.explained_variance_ > _NOTHING * turn.explained_variance_[0]
    bank, queries = (turn.transform(x)[:, varies].astype(np.float32) for x in (bank, queries))
    return bank, queries
