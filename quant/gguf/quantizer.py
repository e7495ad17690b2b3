"""llama.cpp's own quantizer: a GGUF file to another one, by a file type, with or without an importance matrix."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from quant.errors import Refused
from quant.files import require_space
from quant.gguf.header import check_gguf
from quant.gguf.library import bindings

PREFIX = "LLAMA_FTYPE_MOSTLY_"


def type_number(name: str) -> int:
    """llama.cpp's number for a file type. Raises Refused, which lists the known types, for an unknown name."""
    low_level = bindings()
    number = getattr(low_level, PREFIX + name, None)
    if number is None:
        known = ", ".join(sorted(name.removeprefix(PREFIX) for name in dir(low_level) if name.startswith(PREFIX)))
        raise Refused(f"llama.cpp type is {name!r}; llama.cpp has {known}")
    return number


def run_quantizer(source: Path, target: Path, file_type: str, importance: Mapping[str, torch.Tensor] | None = None,
                  kinds: Mapping[str, str] | None = None) -> None:
    """Quantize the file `source` to `target`.

    importance: mean squares of the inputs of each column, float32 [columns], by the name of the tensor. kinds: types that tensors
    get instead of those which the file type gives them, such as {"token_embd.weight": "Q6_K"}.
    Raises Refused for an unknown type, and where llama.cpp fails: some types need an importance matrix.
    """
    check_gguf(source)
    low_level = bindings()
    options = low_level.llama_model_quantize_default_params()
    options.ftype = type_number(file_type)
    options.nthread = os.cpu_count() or 1
    held = []  # alive until the call is over
    if importance:
        rows = (low_level.llama_model_imatrix_data * (len(importance) + 1))()
        for row, (name, values) in zip(rows, importance.items(), strict=False):
            values = values.float().contiguous()
            held.append(values)
            row.name, row.size = name.encode(), values.numel()
            row.data = ctypes.cast(values.data_ptr(), ctypes.POINTER(ctypes.c_float))
        options.imatrix = rows
    if kinds:
        from gguf import GGMLQuantizationType

        overrides = (low_level.llama_model_tensor_override * (len(kinds) + 1))()
        for row, (name, kind) in zip(overrides, kinds.items(), strict=False):
            row.pattern, row.type = f"^{name.replace('.', chr(92) + '.')}$".encode(), int(GGMLQuantizationType[kind])
        options.tt_overrides = overrides
    status = low_level.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if status or not target.is_file():
        require_space(target, source.stat().st_size)
        remedy = "" if importance else "; some types need an importance matrix: set imatrix: true"
        raise Refused(f"llama.cpp could not quantize {source} to {file_type} (status {status}){remedy}")
