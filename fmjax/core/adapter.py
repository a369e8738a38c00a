"""The collection of adapters, as those who make, apply and train them must agree on it.

It lies beside "params" and mirrors module paths. Its leaves are trained, but for the constants
that go with low-rank factors.
"""

COLLECTION = "adapter"

ENCODER = "encoder"
"""Top-level key of the parameters that the adapter proper is computed from (`peft.expand`)."""

CONSTANTS = ("lora_scale", "lora_dropout", "rows")
"""Names of the leaves that are not trained: the numbers that go with low-rank factors, and which
row of a batch uses which of several adapters."""

TRAINABLE: tuple[tuple[str, bool], ...] = (
    (rf"(^|/)({'|'.join(CONSTANTS)})$", False),
    (r".", True),
)
"""Which leaves are trained, as ordered rules (regex on the path, trained or not)."""
