"""Products of several rows of activations, with 32 rows of a weight at a time: a band (AVX-512).

A strip of the band, 256 columns, is decoded (decoding.py, transposing.py) and stays in the core's first cache while all rows of
activations are multiplied with it (dots.py). Up to eight rows in 8 bits are multiplied as it is decoded (at_once.py). batches.py
lays out the activations, eight rows at a time, and loops.py goes through bands, strips and batches. in_floats.py is the job for
activations as they are, in_bytes.py for activations rounded to 8 bits (activations.py, quant.kernels.precision); levels.py turns
a table of floats into bytes for it.
"""
