"""Importance matrices in llama.cpp's own file format, which its quantizer and other tools read.

The file is a GGUF of type "imatrix". Of each weight it holds `<name>.in_sum2`, the sums of squared inputs of its columns, and
`<name>.counts`, the number of tokens summed. Reference: tools/imatrix of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy
import torch

from quant.errors import InputError
from quant.files import atomic_file
from quant.gguf.tensors import read

SUMS, COUNTS = ".in_sum2", ".counts"


def write_imatrix(path: Path, mean_squares: Mapping[str, torch.Tensor], source: str, windows: int, length: int) -> None:
    """Write the mean squares, float32 [columns], of weights by their name in GGUF. source: name of the text they are taken on,
    in so many windows of `length` tokens."""
    from gguf import GGUFWriter

    with atomic_file(path) as partial:
        writer = GGUFWriter(partial, arch="")
        writer.kv_data[0].pop("general.architecture", None)  # a file of type imatrix has none
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", [source])
        writer.add_uint32("imatrix.chunk_count", windows)
        writer.add_uint32("imatrix.chunk_size", length)
        count = numpy.float32(windows * length)
        for name, values in sorted(mean_squares.items()):
            writer.add_tensor(name + SUMS, values.float().numpy()[None] * count)
            writer.add_tensor(name + COUNTS, numpy.full((1, 1), count, dtype=numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path) -> dict[str, torch.Tensor]:
    """The mean squares of a file, float32 [columns], by the name of the weight. Raises InputError for another kind of file, and
    for one with matrices of experts."""
    reader = read(path)
    field = reader.fields.get("general.type")
    kind = None if field is None else field.contents()
    if kind != "imatrix":
        raise InputError(f"{path} is not an importance matrix: its general.type is {kind!r}; expected imatrix")
    data = {tensor.name: numpy.array(tensor.data, dtype=numpy.float32) for tensor in reader.tensors}
    found = {}
    for name, sums in data.items():
        if name.endswith(SUMS):
            counts = data[name.removesuffix(SUMS) + COUNTS].reshape(-1)
            if counts.size != 1:
                raise InputError(f"{path} holds {counts.size} matrices of {name}; expected one, as models without experts have")
            found[name.removesuffix(SUMS)] = torch.from_numpy(sums.reshape(-1) / counts[0])
    return found
