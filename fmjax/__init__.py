"""fmjax."""
