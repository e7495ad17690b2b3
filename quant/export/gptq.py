"""Writes an artifact in GPTQ's checkpoint format, as AutoGPTQ and GPTQModel lay it out, which vLLM and others serve.

The weight [out, in] of a linear layer becomes, with codes of 2, 3, 4 or 8 bits in words of 32 without gaps,

    qweight  int32 [in * bits / 32, out]      the codes of a column of words run down the input
    qzeros   int32 [groups, out * bits / 32]  the codes that mean 0
    scales   float16 [groups, out]
    g_idx    int32 [in]                       the group of each input

The first version of the format ("gptq") stores every zero less 1, so it has no zero 0 and readers differ in what they take for
it; symmetric schemes of 2, 4 and 8 bits, whose zero is 2^(bits-1), are written so, since every reader knows it. Asymmetric ones
and 3 bits are written in the second ("gptq_v2"), which stores the zero itself.
Format: https://github.com/ModelCloud/GPTQModel, nn_modules/qlinear.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from pathlib import Path

import torch
from transformers import PreTrainedModel

from quant.errors import InputError
from quant.export.linears import Linear, Stored, in_float, write_linears
from quant.export.serving import NOTE, check_multiple, check_scheme, common_scheme, words, zeros_of
from quant.model.safetensors_file import TensorInfo
from quant.tensor.scheme import Scheme

BITS = (2, 3, 4, 8)


class Gptq:
    """The format, as quant.export.linears asks for it."""

    name, method = "gptq", "gptq"

    def check(self, name: str, scheme: Scheme, shape: tuple[int, int]) -> None:
        check_scheme(self.name, name, scheme, shape[1], BITS)
        for what, count in zip(("outputs", "inputs"), shape, strict=True):
            check_multiple(self.name, name, what, count, 32 // gcd(32, scheme.bits))

    def layout(self, linear: Linear) -> dict[str, TensorInfo]:
        (rows, columns), bits = linear.shape, linear.packing.bits
        stored = {
            "qweight": TensorInfo(torch.int32, (columns * bits // 32, rows)),
            "qzeros": TensorInfo(torch.int32, (linear.groups, rows * bits // 32)),
            "scales": TensorInfo(torch.float16, (linear.groups, rows)),
            "g_idx": TensorInfo(torch.int32, (columns,)),
        }
        return {f"{linear.module}.{name}": info for name, info in stored.items()}

    def tensors(self, linear: Linear, stored: Stored) -> Iterator[tuple[str, torch.Tensor]]:
        columns = linear.shape[1]
        yield f"{linear.module}.qweight", stored.codes.view(torch.int32).T.contiguous()  # the same stream of bits
        yield f"{linear.module}.qzeros", words(zeros_of(linear, stored) - int(_is_first(linear)), linear.packing.bits)
        yield f"{linear.module}.scales", stored.scales.T.contiguous()
        yield f"{linear.module}.g_idx", torch.arange(columns, dtype=torch.int32) // (columns // linear.groups)

    def config(self, model: PreTrainedModel, linears: list[Linear]) -> dict:
        bits, group_size = common_scheme(self.name, model, linears)
        head = model.get_output_embeddings()
        for name in in_float(model, linears):
            if model.get_submodule(name) is not head:
                raise InputError(f"{name} stays in float; {self.name} quantizes all linear layers of the blocks: quantize it "
                                 "too, or export the model as awq or compressed-tensors")
        return {
            "quant_method": self.method,
            "bits": bits,
            "group_size": group_size,
            "sym": linears[0].packing.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "checkpoint_format": "gptq" if _is_first(linears[0]) else "gptq_v2",
        }


def write(artifact: Path, folder: Path) -> str:
    """Write the artifact to the empty folder `folder`; see write_linears. Returns a note on the dtype to open it in."""
    write_linears(artifact, folder, Gptq())
    return NOTE


def _is_first(linear: Linear) -> bool:
    """Whether a layer, and with it all others, is written in the first version of the format."""
    return linear.packing.symmetric and linear.packing.bits != 3
