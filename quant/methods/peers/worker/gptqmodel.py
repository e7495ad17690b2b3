"""GPTQModel: GPTQ (Frantar et al. 2022) in the checkpoint layout that AutoGPTQ introduced, read back from its own files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy
import torch
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file

from quant.methods.peers.worker.job import Clock, Found, Job, Matrix

# What the layout's first version takes from the packed zeros, word by word: 1 from each with 2, 4 and 8 bits; with 3 bits it is
# not, but loaders add the same
TAKEN = {2: (0x55555555,), 3: (0x24924924, 0x92492492, 0x49249249), 4: (0x11111111,), 8: (0x01010101,)}


def quantize(job: Job) -> Found:
    tokens = job.windows
    texts = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    config = QuantizeConfig(bits=job.bits, group_size=job.group_size or -1, sym=job.symmetric, desc_act=False, device="cpu")
    model = GPTQModel.load(str(job.base), config, trust_remote_code=False)
    clock = Clock()
    model.quantize(texts, batch_size=8)
    seconds = clock.seconds
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        stored = {name: value for path in sorted(Path(folder).glob("*.safetensors")) for name, value in load_file(path).items()}
    found = {name: _matrix({key: stored[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx")}, job)
             for name in job.modules if f"{name}.qweight" in stored}
    note = "its checkpoint stores the group of each input in 32 bits, and zeros of symmetric weights too"
    return Found(found, None, seconds, [note])


def _matrix(stored: dict[str, torch.Tensor], job: Job) -> Matrix:
    columns, scales = len(stored["g_idx"]), stored["scales"].float().T
    if not torch.equal(stored["g_idx"].long(), torch.arange(columns) // job.groups(columns)):
        raise ValueError("the groups are not of neighbouring inputs")
    codes = unpack(stored["qweight"].T.contiguous(), job.bits, columns)
    taken = torch.tensor(TAKEN[job.bits]).repeat(stored["qzeros"].shape[1])[: stored["qzeros"].shape[1]]
    words = ((stored["qzeros"].long() + taken) & 0xFFFFFFFF).numpy().astype(numpy.uint32).view(numpy.int32)
    zeros = unpack(torch.from_numpy(words), job.bits, scales.shape[0]).T.float()
    steps = codes.reshape(len(codes), scales.shape[1], -1) - zeros.unsqueeze(-1)
    weight = (steps * scales.unsqueeze(-1)).reshape(codes.shape)
    size = sum(value.numel() * value.element_size() for value in stored.values())
    is_centred = bool((zeros == 2 ** (job.bits - 1)).all())
    return Matrix(codes, scales, None if job.symmetric and is_centred else zeros, weight, size)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Numbers of `bits` bits, the lowest first, in the int32 words of each row: [rows, words] -> int64 [rows, count]."""
    spread = numpy.unpackbits(words.numpy().view(numpy.uint8), axis=1, bitorder="little")[:, : count * bits]
    return torch.from_numpy((spread.reshape(len(words), count, bits).astype(numpy.int64) << numpy.arange(bits)).sum(-1))
