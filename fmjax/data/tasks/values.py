"""Values of data sets as those of JSON."""

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Arrays as lists, NumPy numbers as Python's and bytes as str, at any depth."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
