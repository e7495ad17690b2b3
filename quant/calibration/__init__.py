"""Quantizing with the help of a calibration text: statistics of activations, rounding that uses them, and budgets of bits."""
