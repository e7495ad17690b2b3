"""torchao's weight-only integers: nearest codes in the range of each group, without calibration."""

from __future__ import annotations

import torch
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_

from quant.methods.peers.worker.job import SCALE_BYTES, Clock, Found, Job, Matrix


def quantize(job: Job) -> Found:
    model, notes = job.open()
    kind = MappingType.SYMMETRIC if job.symmetric else MappingType.ASYMMETRIC
    span = PerGroup(job.group_size) if job.group_size else PerAxis(0)
    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{job.bits}"), granularity=span, mapping_type=kind)
    clock, wanted = Clock(), set(job.modules)
    quantize_(model, config, filter_fn=lambda _, name: name in wanted)
    seconds, found = clock.seconds, {}
    for name in job.modules:
        weight = model.get_submodule(name).weight
        if not hasattr(weight, "qdata"):
            continue
        half = 2 ** (job.bits - 1)
        scales = weight.scale.reshape(len(weight), -1)
        zeros = None if job.symmetric else weight.zero_point.reshape(scales.shape).float() + half
        size = weight.qdata.numel() + (SCALE_BYTES + 1) * scales.numel()  # a byte for a code and for a zero, at any width
        found[name] = Matrix(weight.qdata.int() + half, scales, zeros, weight.dequantize(), size)
    if job.bits < 8:
        notes.append(f"on a CPU torchao keeps each code of {job.bits} bits in a byte")
    return Found(found, None, seconds, notes)
