"""Tensors of a GGUF file: which weight of a checkpoint each of them is, and new data in place of the old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from quant.errors import InputError, Refused
from quant.gguf.header import check_gguf
from quant.model.checkpoint import Checkpoint
from quant.model.inventory import Weight

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where a weight stands in a GGUF file. order: the weight's row for each row there, int64 [rows]; None: as they are."""

    weight: Weight
    order: torch.Tensor | None

    def arranged(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the weight in the file's order."""
        return rows if self.order is None else rows[self.order]


def places(path: Path, checkpoint: Checkpoint) -> dict[str, Place]:
    """The weight of each tensor of a file that llama.cpp's converter made of the checkpoint, by the tensor's name.

    Names follow the `gguf` package. Values are compared, so that a weight whose rows the converter rearranged is recognized with
    its order, and one that it changed is refused with InputError.
    """
    reader = read(path)
    arch = reader.fields["general.architecture"].contents()
    inventory = checkpoint.inventory
    names = _names(arch, len(inventory.blocks))
    tensors, found = {tensor.name: tensor for tensor in reader.tensors}, {}
    for weight in inventory.weights:
        name = names.get_name(weight.name, try_suffixes=(".weight", ".bias"))
        if name not in tensors:
            raise Refused(f"{path} has no tensor for {weight.name} (looked for {name}), so codes can't be put there")
        value = checkpoint.read(weight.tensor)
        found[name] = Place(weight, _order(name, _values(tensors[name]), value.T if weight.transposed else value))
    return found


def _names(arch: str, blocks: int):
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    return get_tensor_name_map(next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch), blocks)


def _order(name: str, there: torch.Tensor, here: torch.Tensor) -> torch.Tensor | None:
    here = here.to(there.dtype)
    if there.shape == here.shape and torch.equal(there, here):
        return None
    if there.shape == here.shape and here.ndim == 2:
        rows: dict[bytes, list[int]] = {}
        for i, row in enumerate(here.contiguous().view(torch.uint8).numpy()):
            rows.setdefault(row.tobytes(), []).append(i)
        wanted = [row.tobytes() for row in there.contiguous().view(torch.uint8).numpy()]
        if sorted(wanted) == sorted(key for key, places in rows.items() for _ in places):
            return torch.tensor([rows[key].pop(0) for key in wanted])
    raise Refused(f"llama.cpp's converter changes the values of {name}, so codes can't take their place; expected the "
                  "weight as it is, or its rows in another order")


def read(path: Path):
    """The file's reader, of the `gguf` package; its header is checked first."""
    from gguf import GGUFReader

    check_gguf(Path(path))
    return GGUFReader(path)


def types_of(path: Path) -> dict[str, str]:
    """The type of each tensor, such as Q4_K, by name."""
    return {tensor.name: tensor.tensor_type.name for tensor in read(path).tensors}


def dequantized(path: Path) -> dict[str, torch.Tensor]:
    """The values of all tensors, float32, as the `gguf` package reads them."""
    from gguf.quants import dequantize

    return {tensor.name: torch.from_numpy(numpy.array(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32))
            for tensor in read(path).tensors}


def overwrite(path: Path, values: Mapping[str, torch.Tensor]) -> None:
    """Put new data into tensors of a file: blocks as uint8 [rows, bytes of a row], or floats, which take the tensor's dtype.

    Raises InputError for a tensor of another size, which would be one of another type.
    """
    tensors = {tensor.name: tensor for tensor in read(path).tensors}
    with open(path, "r+b") as file:
        for name, value in values.items():
            tensor = tensors[name]
            if value.dtype != torch.uint8:
                value = value.to(_FLOATS[tensor.tensor_type.name])
            data = value.contiguous().view(torch.uint8).numpy().tobytes()
            if len(data) != tensor.n_bytes:
                raise InputError(f"{name} takes {tensor.n_bytes} bytes as {tensor.tensor_type.name}; found {len(data)}")
            file.seek(int(tensor.data_offset))
            file.write(data)


def _values(tensor) -> torch.Tensor:
    """A tensor's values, in its dtype and shape. Raises InputError for one that is quantized."""
    kind = tensor.tensor_type.name
    if kind not in _FLOATS:
        raise InputError(f"{tensor.name} is {kind}; expected a converted file, which is not quantized")
    shape = tuple(int(size) for size in reversed(tensor.shape))
    data = numpy.ascontiguousarray(tensor.data).view(numpy.uint8)
    return torch.from_numpy(data.reshape(-1).copy()).view(_FLOATS[kind]).view(shape)
