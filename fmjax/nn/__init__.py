"""Primitives: the only creators of parameters."""
