"""Vision transformers (ViT, DeiT and DINO without distillation token)."""
