"""A plan lies on its devices as the run with the same flags does."""

import jax
import pytest

from fmjax.core.errors import ShardingError
from fmjax.recipes.layout import lay_out
from fmjax.recipes.options import Adaptation, Hardware
from fmjax.recipes.plan import Case, config_of
from fmjax.recipes.plan_layout import layout_of

CASE = Case("llama-7b", "v5e:8", 8, 64, override=("num_hidden_layers=1", "hidden_size=64"))


def laid_out(**changes):
    case = Case(**{**vars(CASE), **changes})
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
