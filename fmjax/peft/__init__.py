"""Adapters: small trained additions to a frozen model, exchanged with the PEFT library.

A spec (`LoRA`) says what is added where, and which modules, such as a new head, are trained
whole; the adapter itself is a pytree that goes in beside the parameters:
`model.apply({"params": params, "adapter": adapter}, …)`.
"""

from fmjax.core.adapter import TRAINABLE
from fmjax.peft.adapter import abstract, count, init
from fmjax.peft.algebra import add, combine, interpolate, scale
from fmjax.peft.bank import bank, insert, select, take
from fmjax.peft.config import LoRA
from fmjax.peft.expand import applied, expand
from fmjax.peft.extract import ExtractReport, extract
from fmjax.peft.files import load, save
from fmjax.peft.ia3 import IA3
from fmjax.peft.merge import merge, unmerge
from fmjax.peft.merge_report import MergeReport, merge_report
from fmjax.peft.prefix import Prefix
from fmjax.peft.prompt import Prompt
from fmjax.peft.ptuning import PTuning
from fmjax.peft.routed import Routed
from fmjax.peft.tasks import head_modules

__all__ = [
    "IA3",
    "TRAINABLE",
    "ExtractReport",
    "LoRA",
    "MergeReport",
    "Routed",
    "PTuning",
    "Prefix",
    "Prompt",
    "abstract",
    "add",
    "applied",
    "bank",
    "combine",
    "count",
    "expand",
    "extract",
    "head_modules",
    "init",
    "insert",
    "interpolate",
    "load",
    "merge",
    "merge_report",
    "save",
    "scale",
    "select",
    "take",
    "unmerge",
]
