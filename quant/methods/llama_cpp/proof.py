"""Converts, quantizes and runs the embedded model with llama.cpp; a child process of set-up, because a bad build may crash."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from quant.methods.llama_cpp.convert import convert
from quant.methods.llama_cpp.quantize import quantize
from quant.methods.llama_cpp.spec import Spec
from quant.runners import open_runner

TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M")
EMBEDDED = Path(__file__).resolve().parents[3] / "models" / "embedded"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(EMBEDDED, folder / "converted")
        for file_type in TYPES:
            quantize(folder / "converted" / "model.gguf", Spec(file_type), folder / file_type)
            runner = open_runner(folder / file_type)
            logits = runner.logits(torch.arange(64).view(1, 64))
            if not torch.isfinite(logits).all() or logits.std() == 0:
                raise SystemExit(f"llama.cpp's logits of type {file_type} are not finite numbers")
            runner.prefill(torch.arange(32))
            runner.decode(1)


if __name__ == "__main__":
    main()
