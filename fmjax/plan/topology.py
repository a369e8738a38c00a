"""Topologies by name: which chips, how many, and their devices without the hardware."""

import dataclasses
import importlib.util
import math
import re
from typing import Any

from fmjax.core.errors import ConfigError
from fmjax.plan.chips import CHIPS, Chip
from fmjax.plan.gpu_targets import target_config

# Chips → the grid that the cloud hands out for that number, so that a count is enough.
_GRIDS = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        4: "2x2x1",
        8: "2x2x2",
        16: "2x2x4",
        32: "2x4x4",
        64: "4x4x4",
        128: "4x4x8",
        256: "4x8x8",
        512: "8x8x8",
        1024: "8x8x16",
    },
}
_DIMENSIONS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
# A host of these has four chips, and nothing smaller can be described: one chip is its first.
_HOST = "2x2x1"

# The two cores of a v4 work as one device, as they do for everyone unless told otherwise.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}

INSTALL = {"tpu": "pip install libtpu", "cuda": 'pip install "jax[cuda12]"'}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Which chips a step is planned for.

    Attributes:
      text: as it was written, such as "v5p:2x2x4".
      chip: its kind.
      count: of chips.
      grid: their arrangement, such as "2x2x4"; "" for GPUs.
    """

    text: str
    chip: Chip
    count: int
    grid: str


def parse(text: str) -> Topology:
    """Reads "v5p:2x2x4", "v5p:1", "v5e:4x4", "v6e:8", "h100:8".

    Raises:
      ConfigError: an unknown chip, a number of chips that is not handed out, another shape.
    """
    name, _, size = text.partition(":")
    if name not in CHIPS:
        raise ConfigError(f"--topology {text}: no chip {name!r}; there are {', '.join(CHIPS)}")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ConfigError(
            f"--topology {text}: write chip:number or chip:grid, as in v5p:2x2x4, v5e:8 or h100:8"
        )
    parts = [int(n) for n in size.split("x")]
    if chip.platform == "cuda":
        if len(parts) > 1 or parts[0] > 8:
            raise ConfigError(
                f"--topology {text}: GPUs are planned for on one host; give a number from 1 to 8, "
                f"as in {name}:8"
            )
        return Topology(text, chip, parts[0], "")
    dimensions = _DIMENSIONS[name]
    if len(parts) == 1:
        grids = _GRIDS[dimensions]
        if parts[0] == 1 and dimensions == 3:
            return Topology(text, chip, 1, _HOST)
        if parts[0] not in grids:
            raise ConfigError(
                f"--topology {text}: no slice of {parts[0]} chips; there are "
                f"{', '.join(map(str, sorted({1, *grids})))}, or give a grid such as "
                f"{name}:{grids[16]}"
            )
        return Topology(text, chip, parts[0], grids[parts[0]])
    if len(parts) != dimensions:
        raise ConfigError(
            f"--topology {text}: {name} is a grid of {dimensions} dimensions, as in "
            f"{name}:{_GRIDS[dimensions][16]}"
        )
    return Topology(text, chip, math.prod(parts), size)


def describe(topology: Topology) -> list[Any]:
    """The topology's devices, for a mesh: nothing can be put on them, but compiled for them.

    Raises:
      ConfigError: the platform's plugin is missing (with the line that installs it), or it does not
        know the topology.
    """
    platform = topology.chip.platform
    plugin = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}[platform]
    if importlib.util.find_spec(plugin) is None:
        raise ConfigError(
            f"--topology {topology.text} needs the {platform.upper()} compiler; install it with "
            f"`{INSTALL[platform]}` (no chip has to be present)"
        )
    from jax.experimental import topologies

    name, options = f"{topology.chip.name}:{topology.grid}", _OPTIONS.get(topology.chip.name, {})
    if platform == "cuda":
        # Slices × hosts × GPUs of a host.
        name = f"1x1x{topology.count}"
        options = {"target_config": target_config(topology.chip), "topology": name}
    try:
        found = topologies.get_topology_desc(name, platform=platform, **options).devices
    except Exception as e:  # the plugins raise their own kinds
        raise ConfigError(
            f"--topology {topology.text}: the {platform.upper()} compiler does not describe it "
            f"({str(e).strip().splitlines()[0]}); choose another grid"
        ) from e
    return list(found[: topology.count])
