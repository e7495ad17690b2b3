"""Measures: quality on a fixed list of tokens, bytes from the real tensors, time against the base in turn."""
