"""Checkpoints of other libraries, read and written through one table of rows per family."""

from fmjax.convert.atomic import replacing
from fmjax.convert.bitsandbytes import SCALES, PackedTensor, gather
from fmjax.convert.bitsandbytes_config import read_config, write_config
from fmjax.convert.checkpoint import match, open_directory, read_json
from fmjax.convert.load import load_params, read_slice
from fmjax.convert.packed import survey
from fmjax.convert.rows import Fused, Row, hf_module, module_path, targets, unstacked
from fmjax.convert.safetensors import Item, Tensor, cast, read_header, write_file
from fmjax.convert.save import (
    MAX_SHARD_SIZE,
    OWNED,
    contribute,
    param_items,
    save_params,
    tensor_items,
    to_host,
    write_weights,
)
from fmjax.convert.transforms import (
    IDENTITY,
    TRANSPOSE,
    Chain,
    Fuse,
    Identity,
    Permute,
    Split,
    Transform,
)

__all__ = [
    "IDENTITY",
    "MAX_SHARD_SIZE",
    "OWNED",
    "SCALES",
    "TRANSPOSE",
    "Chain",
    "Fuse",
    "Fused",
    "Identity",
    "Item",
    "PackedTensor",
    "Permute",
    "Row",
    "Split",
    "Tensor",
    "Transform",
    "cast",
    "contribute",
    "gather",
    "hf_module",
    "load_params",
    "match",
    "module_path",
    "open_directory",
    "param_items",
    "read_config",
    "read_header",
    "read_json",
    "read_slice",
    "replacing",
    "save_params",
    "survey",
    "targets",
    "tensor_items",
    "to_host",
    "unstacked",
    "write_config",
    "write_file",
    "write_weights",
]
