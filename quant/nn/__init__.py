"""Torch modules that replace a model's own: with quantized weights (modules.py), and for faster decoding (decoding.py)."""
