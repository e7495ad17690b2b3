"""Preflight: a model's facts from its config and headers, and a forecast of every variant's size, before any work."""
