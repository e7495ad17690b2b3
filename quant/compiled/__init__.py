"""Loops compiled by numba and kept on disk, which run on torch's own threads."""
