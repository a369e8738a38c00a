"""Qwen2 (and 2.5) and Qwen3."""
