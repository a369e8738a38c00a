"""Masked autoencoders (MAE)."""
