"""Shared ground: errors, parameter paths, execution policy, logical axes."""

from fmjax.core.errors import FmjaxError
from fmjax.core.execution import Execution
from fmjax.core.params import ParamSpec

__all__ = ["Execution", "FmjaxError", "ParamSpec"]
