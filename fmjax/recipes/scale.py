"""What a pretraining run on rented accelerators would take: arithmetic, before it is paid for."""

import dataclasses

from fmjax.recipes.models import architecture
from fmjax.recipes.objective import is_masked
from fmjax.recipes.pretrain import Pretrain
from fmjax.train.device_peaks import peak_flops

MFU = 0.40
"""Share of the peak that is assumed to be reached."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Accelerators of one kind.

    Attributes:
      kind: as JAX names the device.
      chips: how many.
      memory: bytes of each.
      price: assumed, in US dollars a chip-hour on demand; check the day's.
    """

    kind: str
    chips: int
    memory: float
    price: float


# The number in a v5p's name counts TensorCores, of which a chip has two.
MACHINES = {
    "v5e-8": Machine("TPU v5e", 8, 16e9, 1.20),
    "v5p-16": Machine("TPU v5p", 8, 95e9, 4.20),
    "8xH100": Machine("H100", 8, 80e9, 3.00),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The arithmetic of one run.

    Attributes:
      params: N, all of them.
      tokens: D = steps · rows · tokens in a row.
      flops: 6·N·D.
      hours: 6·N·D / (chips · peak · MFU), in wall-clock hours.
      dollars: hours · chips · price.
      loss: expected, in nats a token: 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28, the fit of
        arXiv:2203.15556 on web text with its own tokenizer; None for encoders, which it is not of.
    """

    params: int
    tokens: int
    flops: float
    hours: float
    dollars: float
    loss: float | None


def estimate(settings: Pretrain, machine: Machine) -> Estimate:
    """What a published size, changed by its `override`, takes on a machine.

    Raises:
      ConfigError: an unknown size or field.
    """
    import fmjax
    from fmjax.core import tree

    config = architecture(settings.model, settings.override)
    params = tree.count(fmjax.abstract_params(fmjax.build(config)))
    data = settings.data
    tokens = settings.optimization.steps * data.batch_size * data.sequence_length
    flops = 6.0 * params * tokens
    hours = flops / (machine.chips * peak_flops(machine.kind) * MFU) / 3600
    loss = None if is_masked(config) else 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
    return Estimate(params, tokens, flops, hours, hours * machine.chips * machine.price, loss)


_WIDTHS = (-6, -14, 5, -6, 11, 7, 5, 7, 5, 6, 4)


def _row(*cells: str) -> str:
    """Cells side by side; a negative width aligns to the left."""
    pairs = zip(cells, _WIDTHS, strict=True)
    return "  ".join(f"{c:<{-w}}" if w < 0 else f"{c:>{w}}" for c, w in pairs)


HEADER = _row(
    "scale", "model", "N (B)", "mesh", "rows × T", "steps", "D (B)", "6ND", "hours", "USD", "loss"
)


def line(name: str, settings: Pretrain) -> str:
    """One row of the table that an experiment states, under `HEADER`."""
    e, data = estimate(settings, MACHINES[name]), settings.data
    return _row(
        name,
        settings.model,
        f"{e.params / 1e9:.2f}",
        settings.hardware.mesh,
        f"{data.batch_size} × {data.sequence_length}",
        f"{settings.optimization.steps:,}",
        f"{e.tokens / 1e9:.0f}",
        f"{e.flops:.1e}",
        f"{e.hours:.0f}",
        f"{e.dollars:,.0f}",
        "-" if e.loss is None else f"{e.loss:.2f}",
    )
