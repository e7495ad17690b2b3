"""auto-round (Cheng et al. 2023): rounding and clipping learnt block by block with signed gradients."""

from __future__ import annotations

import torch
from auto_round import AutoRound

from quant.methods.peers.worker.job import SCALE_BYTES, Clock, Found, Job, Matrix


def quantize(job: Job) -> Found:
    model, notes = job.open()
    tokens = job.windows
    texts = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in tokens]
    clock = Clock()
    with torch.enable_grad():
        rounding = AutoRound(model, job.tokenizer(), bits=job.bits, group_size=job.group_size or -1, sym=job.symmetric,
                             dataset=texts, iters=job.iterations, nsamples=len(tokens), seqlen=tokens.shape[1], batch_size=8,
                             device_map="cpu", enable_torch_compile=False, amp=False)
        result = rounding.quantize()
    seconds, model = clock.seconds, result[0] if isinstance(result, tuple) else result
    found = {}
    for name in job.modules:
        layer = model.get_submodule(name)
        if getattr(layer, "scale", None) is not None:
            found[name] = _matrix(layer, job)
    return Found(found, model, seconds, notes)


def _matrix(layer: torch.nn.Module, job: Job) -> Matrix:
    weight = layer.weight.data.float()
    rows, half = len(weight), 2 ** (job.bits - 1)
    scales = layer.scale.float().reshape(rows, -1)
    zeros = None if job.symmetric else torch.as_tensor(layer.zp).float().reshape(rows, -1).expand_as(scales)
    blocks = weight.reshape(rows, scales.shape[1], -1) / scales.unsqueeze(-1)
    codes = (blocks + (half if zeros is None else zeros.unsqueeze(-1))).round().clamp(0, 2**job.bits - 1)
    packed_zeros = job.bits * scales.numel() // 8  # stored for symmetric weights too
    size = job.bits * weight.numel() // 8 + SCALE_BYTES * scales.numel() + packed_zeros
    return Matrix(codes.reshape(weight.shape).int(), scales, zeros, weight, size)
