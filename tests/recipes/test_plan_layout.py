"""A plan lies on its devices as the run with the same flags does."""

import dataclasses

import jax
import pytest

from fmjax.core.errors import ShardingError
from fmjax.parallel import RULES, parse_rules
from fmjax.recipes.layout import lay_out
from fmjax.recipes.options import Adaptation, Hardware
from fmjax.recipes.plan import Case, beyond, config_of
from fmjax.recipes.plan_layout import layout_of, name_of

CASE = Case("llama-7b", "v5e:8", 8, 64, override=("num_hidden_layers=1", "hidden_size=64"))


def laid_out(**changes):
    case = dataclasses.replace(CASE, **changes)
    return layout_of(case, config_of(case), jax.devices(), 16e9)


@pytest.mark.parametrize("mesh", ["tensor=2", "fsdp=4", "fsdp=-1", "data=2,tensor=4"])
@pytest.mark.parametrize("rules", ["", "fsdp_tensor"])
def test_as_a_run(mesh: str, rules: str) -> None:
    run = lay_out(Hardware(mesh=mesh, rules=rules), config_of(CASE), Adaptation(), CASE.batch)
    assert laid_out(mesh=mesh, rules=rules) == (run.mesh, run.rules)


def test_rules_alone_and_decoding_have_all_devices_on_fsdp() -> None:
    assert laid_out(rules="ddp")[0].shape["fsdp"] == jax.device_count()
    assert laid_out(decode=True)[0].shape["fsdp"] == jax.device_count()


def test_devices_that_would_repeat_each_other_are_refused() -> None:
    with pytest.raises(ShardingError, match="--rules fsdp leave tensor of --mesh tensor=2"):
        laid_out(mesh="tensor=2", rules="fsdp")


def test_lists_are_named() -> None:
    assert name_of(RULES["ddp"]) == "ddp" and name_of(parse_rules("")) == "fsdp_tensor"
    assert name_of(parse_rules("fsdp,norm=data")) == ""


def test_rows_that_a_run_would_refuse_are_noted() -> None:
    long = dataclasses.replace(CASE, seq=4096)
    (note,) = beyond(long, config_of(long))
    assert "context of 2048" in note and "--override max_position_embeddings=4096" in note
    assert not beyond(CASE, config_of(CASE))
