"""HQQ (Badri and Shaji 2023): half-quadratic scales and real zeros from the weights alone, without calibration."""

from __future__ import annotations

import torch
from hqq.core.quantize import Quantizer

from quant.methods.peers.worker.job import SCALE_BYTES, Clock, Found, Job, Matrix


def quantize(job: Job) -> Found:
    model, notes = job.open()
    clock, found = Clock(), {}
    for name in job.modules:
        weight = model.get_submodule(name).weight.data
        group = job.groups(weight.shape[1])
        packed, about = Quantizer.quantize(weight.clone(), nbits=job.bits, group_size=group, optimize=True, axis=1, device="cpu",
                                           compute_dtype=torch.float32)
        scales, zeros = (about[key].reshape(len(weight), -1) for key in ("scale", "zero"))
        codes = Quantizer.unpack[about["packing"]](packed)[: weight.numel() // group].reshape(weight.shape)
        restored = Quantizer.dequantize(packed, about).reshape(weight.shape)
        size = packed.numel() * packed.element_size() + 2 * SCALE_BYTES * scales.numel()
        found[name] = Matrix(codes, scales, zeros, restored, size)
    return Found(found, None, clock.seconds, notes)
