"""Runs in the environment of the other quantizers, not in the pipeline's: `python -m quant.methods.peers.worker JOB`.

JOB is a folder with job.json: base (folder of the model), package, algorithm, bits, group_size, symmetric, iterations, seed, and
modules, the names of the matrices to quantize; and windows.safetensors with the calibration tokens, int32 [windows, length].
The worker adds found.safetensors and found.json. Of the project it imports this folder, as the environments differ in versions.

Each file here runs one package: a function `quantize(job)`, which returns a `Found`.
"""
