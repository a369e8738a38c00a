"""Errors meant for the person at the keyboard.

Each carries one line that says what was wrong, where, and what to do. The command line prints
that line without a traceback and exits with status 2; library users catch `FmjaxError`.
"""


class FmjaxError(Exception):
    """Base of every error that fmjax raises on bad input."""


class ConfigError(FmjaxError, ValueError):
    """A configuration or an argument that cannot be used."""


class CheckpointError(FmjaxError, ValueError):
    """A weights file, adapter or training checkpoint that cannot be read, written or matched."""


class DataError(FmjaxError, ValueError):
    """A dataset, text file or batch that cannot be used."""


class TokenizerError(FmjaxError, ValueError):
    """A tokenizer that cannot be read or does not fit the model."""


class ShardingError(FmjaxError, ValueError):
    """A mesh, a rule list or a shape that does not divide over the devices."""
