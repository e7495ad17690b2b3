"""Writes an artifact as compressed-tensors' `pack-quantized`, which transformers opens and vLLM serves.

Codes, scales and whole zeros are rearranged, never recomputed. The weight [out, in] of a linear layer becomes

    weight_packed      int32 [out, words]     the bytes of quant.tensor.packing, each row padded to whole 32-bit words
    weight_scale       [out, groups]          in the dtype it has in the artifact; float32 where that has int8 times float16
    weight_zero_point  int32 [words, groups]  of asymmetric schemes: each column packed as a row of codes is
    weight_shape       int64 [2]              out, in

A code c means c - 2^(bits-1) in both formats, and so does a whole zero. Both formats have all 2^bits levels, and scales may be
negative. The scale of a whole tensor is repeated for every row, because vLLM reads one per row ("channel") or per group only;
this also covers fused matrices whose roles have a scale each.
Format: https://github.com/vllm-project/compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from quant.export.linears import Linear, Stored, check_codes, in_float, write_linears
from quant.model.safetensors_file import TensorInfo
from quant.tensor.packing import pack, row_bytes
from quant.tensor.scheme import Scheme

BITS = (4, 8)  # vLLM has kernels for these


class PackQuantized:
    """The format, as quant.export.linears asks for it."""

    name, method = "pack-quantized", "compressed-tensors"

    def check(self, name: str, scheme: Scheme, shape: tuple[int, int]) -> None:
        check_codes(self.name, name, scheme, shape[1], BITS)

    def layout(self, linear: Linear) -> dict[str, TensorInfo]:
        (rows, columns), packing = linear.shape, linear.packing
        stored = {
            "packed": TensorInfo(torch.int32, (rows, _words(columns, packing.bits))),
            "scale": TensorInfo(packing.scale_dtype, (rows, linear.groups)),
            "shape": TensorInfo(torch.int64, (2,)),
        }
        if not packing.symmetric:
            stored["zero_point"] = TensorInfo(torch.int32, (_words(rows, packing.bits), linear.groups))
        return {f"{linear.module}.weight_{name}": info for name, info in stored.items()}

    def tensors(self, linear: Linear, stored: Stored) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{linear.module}.weight_packed", _as_words(stored.codes)
        yield f"{linear.module}.weight_scale", stored.scales
        yield f"{linear.module}.weight_shape", torch.tensor(linear.shape)
        if stored.zeros is not None:
            yield f"{linear.module}.weight_zero_point", _as_words(pack(stored.zeros, linear.packing.bits)).T.contiguous()

    def config(self, model: PreTrainedModel, linears: list[Linear]) -> dict:
        """Groups of layers by full name, and the layers left in floating point."""
        groups: dict[tuple[int, int | None, bool], list[str]] = {}
        for linear in linears:
            groups.setdefault(linear.packing[:3], []).append(linear.module)
        return {
            "quant_method": self.method,
            "format": self.name,
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{i}": {
                    "targets": targets,
                    "format": self.name,
                    "weights": {
                        "num_bits": bits,
                        "type": "int",
                        "symmetric": symmetric,
                        "strategy": "group" if group_size else "channel",
                        "group_size": group_size,
                        "dynamic": False,
                    },
                    "input_activations": None,
                    "output_activations": None,
                }
                for i, ((bits, group_size, symmetric), targets) in enumerate(groups.items())
            },
            "ignore": in_float(model, linears),
        }


def write(artifact: Path, folder: Path) -> str | None:
    """Write the artifact to the empty folder `folder`; see write_linears. Returns a note on zero points, if there are any."""
    if all(linear.packing.symmetric for linear in write_linears(artifact, folder, PackQuantized())):
        return None
    return ("note: it has zero points: transformers opens it with quantization_config=CompressedTensorsConfig(dequantize=True), "
            "and only if all quantized layers have one scheme")


def _words(count: int, bits: int) -> int:
    """32-bit words of a row of codes."""
    return -(-row_bytes(count, bits) // 4)


def _as_words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, bytes] -> int32 [rows, words], each row padded with zeros."""
    return pad(codes, (0, -codes.shape[1] % 4)).view(torch.int32)
