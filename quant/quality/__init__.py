"""Quality: scoring protocols, perplexity and divergence from the base, bootstrap intervals, and rounding errors of weights."""
