"""Writes an artifact in AWQ's checkpoint format (AutoAWQ's "gemm"), which vLLM and others serve: 4 bits only.

The weight [out, in] of a linear layer becomes

    qweight  int32 [in, out / 8]      the codes of eight outputs in a word, in the order of ORDER from its lowest bits
    qzeros   int32 [groups, out / 8]  the codes that mean 0, in the same order
    scales   float16 [groups, out]

Format: https://github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from quant.export.linears import Linear, Stored, in_float, write_linears
from quant.export.serving import NOTE, check_multiple, check_scheme, common_scheme, words, zeros_of
from quant.model.safetensors_file import TensorInfo
from quant.tensor.packing import unpack
from quant.tensor.scheme import Scheme

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # outputs of eight, as the kernel splits a word into two halves


class Awq:
    """The format, as quant.export.linears asks for it."""

    name, method = "awq", "awq"

    def check(self, name: str, scheme: Scheme, shape: tuple[int, int]) -> None:
        check_scheme(self.name, name, scheme, shape[1], (BITS,))
        check_multiple(self.name, name, "outputs", shape[0], len(ORDER))

    def layout(self, linear: Linear) -> dict[str, TensorInfo]:
        rows, columns = linear.shape
        stored = {
            "qweight": TensorInfo(torch.int32, (columns, rows // 8)),
            "qzeros": TensorInfo(torch.int32, (linear.groups, rows // 8)),
            "scales": TensorInfo(torch.float16, (linear.groups, rows)),
        }
        return {f"{linear.module}.{name}": info for name, info in stored.items()}

    def tensors(self, linear: Linear, stored: Stored) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{linear.module}.qweight", _words(unpack(stored.codes, BITS, linear.shape[1]).T)
        yield f"{linear.module}.qzeros", _words(zeros_of(linear, stored))
        yield f"{linear.module}.scales", stored.scales.T.contiguous()

    def config(self, model: PreTrainedModel, linears: list[Linear]) -> dict:
        bits, group_size = common_scheme(self.name, model, linears)
        return {
            "quant_method": self.method,
            "bits": bits,
            "group_size": group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": in_float(model, linears),
        }


def write(artifact: Path, folder: Path) -> str:
    """Write the artifact to the empty folder `folder`; see write_linears. Returns a note on the dtype to open it in."""
    write_linears(artifact, folder, Awq())
    return NOTE


def _words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes [n, out] -> int32 [n, out / 8]."""
    return words(codes.reshape(len(codes), -1, len(ORDER))[..., ORDER].reshape(codes.shape), BITS)
