"""The collection of adapters, as those who make, apply and train them must agree on it.

It lies beside "params" and mirrors module paths. Its leaves are trained, but for the constants
that go with low-rank factors and with banks.
"""

COLLECTION = "adapter"

CONSTANTS = ("lora_scale", "lora_dropout", "rows")
"""Names of the leaves that are not trained: the numbers that go with low-rank factors, and which
row of a batch uses which of several adapters."""

PRESENT = "_present"
"""A bank's leaf "bias" goes with a "bias_present", bool: which of its adapters have one at all."""

TRAINABLE: tuple[tuple[str, bool], ...] = (
    (rf"(^|/)({'|'.join(CONSTANTS)}|\w+{PRESENT})$", False),
    (r".", True),
)
"""Which leaves are trained, as ordered rules (regex on the path, trained or not)."""
