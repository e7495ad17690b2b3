"""Products on a CUDA GPU, checked, tuned and timed: python -m quant.benches.cuda."""
