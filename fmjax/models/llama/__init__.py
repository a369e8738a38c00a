"""LLaMA 1–3 and Mistral."""
