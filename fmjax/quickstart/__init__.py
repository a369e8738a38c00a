"""The whole path on shipped text: tokenizer, pretraining, LoRA, measuring, samples, report."""

from fmjax.quickstart.settings import Quickstart

__all__ = ["Quickstart"]
