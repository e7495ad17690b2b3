"""Quantize causal language models, measure what it costs, and report it."""
