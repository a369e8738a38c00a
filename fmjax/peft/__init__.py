"""Adapters: small trained additions to a frozen model, exchanged with the PEFT library.

A spec (`LoRA`) says what is added where; the adapter itself is a pytree that goes in beside the
parameters: `model.apply({"params": params, "adapter": adapter}, …)`.
"""

from fmjax.peft.adapter import TRAINABLE, abstract, count, init
from fmjax.peft.config import LoRA
from fmjax.peft.files import load, save
from fmjax.peft.merge import merge, unmerge

__all__ = ["TRAINABLE", "LoRA", "abstract", "count", "init", "load", "merge", "save", "unmerge"]
