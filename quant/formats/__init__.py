"""Formats of others that an artifact can be written in: one file each, with `write(artifact, folder)`."""
