"""Packed weights: arrays of a few bits each that stand where a full-precision array stood."""

from fmjax.quant.files import from_file, to_file
from fmjax.quant.formats import (
    FORMATS,
    Format,
    abstract,
    axes,
    parse,
    quantize,
    shardings,
    specs,
)
from fmjax.quant.int8 import Int8, Int8Array
from fmjax.quant.matmul import full, matmul
from fmjax.quant.nf4 import NF4, NF4Array
from fmjax.quant.packed import Packed

__all__ = [
    "FORMATS",
    "NF4",
    "Format",
    "Int8",
    "Int8Array",
    "NF4Array",
    "Packed",
    "abstract",
    "axes",
    "from_file",
    "full",
    "matmul",
    "parse",
    "quantize",
    "shardings",
    "specs",
    "to_file",
]
