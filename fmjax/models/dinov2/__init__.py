"""DINOv2, with and without register tokens."""
