"""Packed weights: arrays of a few bits each that stand where a full-precision array stood."""
