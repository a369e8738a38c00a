"""Pictures in: sources, decoding, batches.

Names are loaded on first use, so that `import fmjax.data.images` costs nothing.
"""

import importlib

_HOME = {
    "decode_image": "decode",
    "ImageError": "decode",
    "ImageSource": "sources",
    "Examples": "sources",
    "ImageFolder": "folders",
    "caption_table": "sources",
    "hash_split": "sources",
    "open_images": "names",
    "digits": "real",
    "photographs": "real",
    "openmoji": "openmoji_tfds",
    "TableImages": "tables",
    "TarImages": "tar",
    "TfdsImages": "tfds_images",
    "image_batches": "batches",
    "image_eval_batches": "batches",
    "Captions": "rows",
    "ImageProcessor": "processor",
    "ImageBatches": "iterate",
    "ImageEvalBatches": "iterate",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"fmjax.data.images.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
