"""Topologies by name, and what is said of wrong ones."""

import importlib.util

import pytest

from fmjax.core.errors import ConfigError
from fmjax.plan import CHIPS, describe, parse
from fmjax.train.device_peaks import PEAKS

TEXTS = {
    "v5p:2x2x4": (16, "2x2x4"),
    "v5p:16": (16, "2x2x4"),
    "v5p:1": (1, "2x2x1"),
    "v4:4": (4, "2x2x1"),
    "v5e:1": (1, "1x1"),
    "v5e:4x4": (16, "4x4"),
    "v6e:8": (8, "2x4"),
    "h100:8": (8, ""),
    "a100:1": (1, ""),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_number_of_chips_is_as_good_as_a_grid(text: str) -> None:
    topology = parse(text)
    assert (topology.count, topology.grid) == TEXTS[text]
    assert topology.chip.name == text.partition(":")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "v7:4": "no chip 'v7'; there are v4, v5e",
        "v5p": "write chip:number or chip:grid",
        "v5p:": "write chip:number",
        "v5p:2x": "write chip:number",
        "v5p:0": "write chip:number",
        "v5p:3": "no slice of 3 chips; there are 1, 4, 8",
        "v5e:2x2x2": "v5e is a grid of 2 dimensions, as in v5e:4x4",
        "v5p:4x4": "v5p is a grid of 3 dimensions, as in v5p:2x2x4",
        "h100:16": "on one host; give a number from 1 to 8",
        "h100:2x4": "on one host",
    }.items(),
)
def test_a_wrong_topology_is_named_with_what_there_is(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--topology {text}: ") as e:
        parse(text)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "install"),
    [("v5e:1", "`pip install libtpu`"), ("h100:1", '`pip install "jax[cuda12]"`')],
)
def test_a_missing_compiler_is_asked_for(
    text: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as e:
        describe(parse(text))
    assert install in str(e.value)


def test_the_peaks_are_those_that_runs_are_measured_by() -> None:
    names = {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e"}
    names |= {"h100": "H100", "a100": "A100"}
    assert {name: chip.flops for name, chip in CHIPS.items()} == {
        name: dict(PEAKS)[kind] for name, kind in names.items()
    }
