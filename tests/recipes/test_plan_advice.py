"""What a plan that does not fit says to change: flags that its step has."""

import dataclasses
from types import SimpleNamespace

from fmjax.plan import Memory
from fmjax.recipes.options import Adaptation
from fmjax.recipes.plan import Case
from fmjax.recipes.plan_advice import advice

RESULT = SimpleNamespace(devices=8, memory=Memory(60, 30, 5, 5), hbm_limit_bytes=80)
CASE = Case("llama-7b", "v5e:8", 32, 2048, remat="none")


def said(**changes) -> str:
    return " ".join(advice(dataclasses.replace(CASE, **changes), RESULT))


def test_training() -> None:
    found = said()
    for flag in ("--remat full", "--accumulate 2", "--batch 16", "--moments", "--method lora"):
        assert flag in found
    assert "--remat offload" in said(remat="full")
    assert "--method qlora" in said(adaptation=Adaptation(method="lora"))
    assert "--rules fsdp_tensor" in said(rules="ddp")


def test_decoding() -> None:
    found = said(decode=True)
    for flag in ("--batch 16", "--seq 1024", "--quantize nf4", "--topology"):
        assert flag in found
    for flag in ("--remat", "--accumulate", "--moments", "--method"):
        assert flag not in found
    assert "--quantize" not in said(decode=True, adaptation=Adaptation(quantize="nf4"))
