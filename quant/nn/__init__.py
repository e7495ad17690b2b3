"""Torch modules that stand in for a model's own: quantized weights (modules.py), and a cheaper decoded token (decoding.py)."""
