"""Benches: developers' measurements on real shapes and schemes. The pipeline does not use them."""
