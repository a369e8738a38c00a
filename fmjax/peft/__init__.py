"""Adapters: small trained additions to a frozen model, exchanged with the PEFT library.

A spec (`LoRA`) says what is added where, and which modules, such as a new head, are trained
whole; the adapter itself is a pytree that goes in beside the parameters:
`model.apply({"params": params, "adapter": adapter}, …)`.
"""

from fmjax.core.adapter import TRAINABLE
from fmjax.peft.adapter import abstract, count, init
from fmjax.peft.bank import bank, insert, select, take
from fmjax.peft.config import LoRA
from fmjax.peft.files import load, save
from fmjax.peft.merge import merge, unmerge
from fmjax.peft.routed import Routed
from fmjax.peft.tasks import head_modules

__all__ = [
    "TRAINABLE",
    "LoRA",
    "Routed",
    "abstract",
    "bank",
    "count",
    "head_modules",
    "init",
    "insert",
    "load",
    "merge",
    "save",
    "select",
    "take",
    "unmerge",
]
