"""How good a model is."""

from fmjax.evals.perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "perplexity"]
