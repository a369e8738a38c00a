"""Text that has to fit."""


def shortened(text: str, length: int) -> str:
    """At most `length` characters; what is left out shows as "…"."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
