"""optimum-quanto: nearest codes; 8 bits have a scale a row, 2 and 4 bits a scale and a real shift a group. Not calibrated."""

from __future__ import annotations

from optimum.quanto import freeze, qint2, qint4, qint8
from optimum.quanto import quantize as swap

from quant.methods.peers.worker.job import SCALE_BYTES, Clock, Found, Job, Matrix

TYPES = {2: qint2, 4: qint4, 8: qint8}


def quantize(job: Job) -> Found:
    model, notes = job.open()
    clock = Clock()
    swap(model, weights=TYPES[job.bits], include=job.modules)
    freeze(model)
    seconds, found = clock.seconds, {}
    for name in job.modules:
        weight = model.get_submodule(name).weight
        if hasattr(weight, "_scale"):
            found[name] = _matrix(weight, job.bits)
    return Found(found, None, seconds, notes)


def _matrix(weight, bits: int) -> Matrix:
    scales = weight._scale.reshape(len(weight), -1)
    if bits == 8:
        codes, zeros, packed, numbers = weight._data.int() + 128, None, weight._data.numel(), scales.numel()
    else:
        codes, zeros = weight._data.unpack(), weight._shift.reshape(scales.shape) / scales
        packed, numbers = weight._data._data.numel(), 2 * scales.numel()
    return Matrix(codes.reshape(weight.shape), scales, zeros, weight.dequantize(), packed + SCALE_BYTES * numbers)
