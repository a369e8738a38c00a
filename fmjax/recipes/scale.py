"""What a pretraining run on rented accelerators would take, by arithmetic, before it is paid for."""

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
      price: assumed, in US dollars a chip-hour on demand; check the day's.
    """

    kind: str
    chips: int
    price: float


# The number in a v5p's name counts TensorCores, of which a chip has two.
MACHINES = {
    "v5e-8": Machine("TPU v5e", 8, 1.20),
    "v5p-16": Machine("TPU v5p", 8, 4.20),
    "8xH100": Machine("H100", 8, 3.00),
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


HEADER = (
    "scale   model          N (B)  mesh   rows × T         steps  D (B)   6ND FLOP  hours    USD  loss"
)


def line(name: str, settings: Pretrain) -> str:
    """One row of the table that an experiment states, under `HEADER`."""
    e, data = estimate(settings, MACHINES[name]), settings.data
    cells = (
        f"{name:<7} {settings.model:<14} {e.params / 1e9:.2f}",
        f"{settings.hardware.mesh:<6} {data.batch_size:>4} × {data.sequence_length:<4}",
        f"{settings.optimization.steps:>7,} {e.tokens / 1e9:>6.0f} {e.flops:>9.1e}",
        f"{e.hours:>4.0f} {e.dollars:>7,.0f}",
        "-" if e.loss is None else f"{e.loss:.2f}",
    )
    return "  ".join(cells)
