"""A GGUF file quantized with llama.cpp's own quantizer.

K-quants (such as Q4_K) work on blocks of 256 weights of a row; where 256 does not divide the row, llama.cpp silently falls back
to another type.
"""

from __future__ import annotations

from pathlib import Path

from quant.files import atomic_folder, write_manifest
from quant.gguf.header import check_hash
from quant.gguf.quantizer import run_quantizer
from quant.methods.llama_cpp.spec import Spec

IMATRIX = "imatrix.gguf"  # in the folder that `prepare` writes
LOOKED = "looked"  # a folder there, which holds why no row can look at a text, where that is so
BUDGET_TYPE = "Q3_K_S"  # what a file under a budget is called; each tensor has a type of its own


def quantize(source: Path, spec: Spec, out: Path) -> None:
    """Quantize the GGUF file `source` to out/model.gguf. An importance matrix stands beside the source.

    Raises Refused for an unknown type, and where llama.cpp fails: some types need an importance matrix.
    """
    from quant.gguf.imatrix import read_imatrix

    check_hash(source)
    importance = read_imatrix(source.parent / IMATRIX) if spec.imatrix else None
    with atomic_folder(out) as folder:
        run_quantizer(source, folder / "model.gguf", spec.type, importance)
        about = {"imatrix": True} if spec.imatrix else {}
        write_manifest(folder, {"method": "llama_cpp", "runtime": "llama_cpp", "type": spec.type, **about})
