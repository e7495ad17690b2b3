"""One weight and its quantized form, between real numbers and stored bytes; nothing here knows a model or a file.

Read qtensor.py first: `quantize` names the four steps, and each step is one file.
"""
