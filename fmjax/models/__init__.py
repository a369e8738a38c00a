"""Model families, one package each, and the registry that finds them."""
