"""What a calibrated pass has finished, in a folder: quantized weights and hidden states, block by block."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quant.files import sha256_of, write_json
from quant.model.safetensors_file import read_header, read_tensor
from quant.model.selection import Part, Selected
from quant.outside import read_json
from quant.tensor.products import LIBRARY
from quant.tensor.qtensor import QTensor, dequantize, layout

UNQUANTIZED = "unquantized:"  # before the names of weights that only changed
EXAMPLE = "example.json"
MEMORY = 2**31  # bytes of inputs that are held in memory; more are kept in a file


def fingerprint(base: Path, prepared: Path, settings: Mapping) -> str:
    """Of everything that the results of a pass depend on, but for the code."""
    inputs = [[path.name, sha256_of(path)] for folder in (base, prepared) for path in sorted(folder.glob("*")) if path.is_file()]
    return sha256(json.dumps([settings, inputs, torch.get_num_threads(), LIBRARY], sort_keys=True).encode()).hexdigest()


class Saved:
    """The results of a pass in the folder `folder`. fingerprint: of everything that the results depend on; results of another are
    removed."""

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self._open = folder, {}
        about = folder / "about.json"
        if not about.is_file() or read_json(about).get("fingerprint") != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(about, {"fingerprint": fingerprint})

    @property
    def blocks(self) -> int:
        """Number of blocks that are finished."""
        count = 0
        while self._path(f"block-{count}").is_file():
            count += 1
        return count

    @property
    def streams(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Hidden states of the float and the quantized model after the last finished block; None before the first."""
        if not self.blocks:
            return None
        held = load_file(self._path(f"hidden-{self.blocks - 1}"))
        return held["original"], held["quantized"]

    def put(self, selected: Selected, part: Part, tensor: QTensor) -> None:
        """Add a quantized part, to be written with its block."""
        self._open |= {f"{selected.tensor_of(part)}.{key}": value for key, value in tensor.tensors().items()}

    def put_float(self, name: str, value: torch.Tensor) -> None:
        """Add a weight that stays unquantized but has changed."""
        self._open[UNQUANTIZED + name] = value

    def finish_block(self, number: int, streams: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Write a block's results, and the hidden states that leave it."""
        self._write(f"hidden-{number}", {"original": streams[0], "quantized": streams[1]})
        self._write(f"block-{number}", self._open)
        self._open = {}
        self._path(f"hidden-{number - 1}").unlink(missing_ok=True)

    def finish(self, name: str) -> None:
        """Write results of weights outside the blocks."""
        self._write(name, self._open)
        self._open = {}

    def put_example(self, example: Mapping) -> None:
        """Keep what feedback does to one row, for the report; the first one of a run."""
        if not (self.folder / EXAMPLE).is_file():
            write_json(self.folder / EXAMPLE, example)

    @property
    def example(self) -> dict | None:
        return read_json(self.folder / EXAMPLE) if (self.folder / EXAMPLE).is_file() else None

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def scratch(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Room for float32 numbers: in memory, or in a file if there are many."""
        count = torch.Size(shape).numel()
        if 4 * count <= MEMORY:
            return torch.empty(shape)
        path = self.folder / f"{name}.f32"
        path.unlink(missing_ok=True)
        return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32).view(shape)

    def read(self, selected: Selected, part: Part) -> QTensor:
        """A quantized part."""
        name, infos = selected.tensor_of(part), self._infos()
        shape = selected.shape_of(part)
        return QTensor.from_tensors({key: read_tensor(infos[f"{name}.{key}"]) for key in layout(shape, part.scheme)}, shape,
                                    part.scheme)

    def floats(self) -> dict[str, torch.Tensor]:
        """Weights that stay unquantized but have changed, by name."""
        return {name.removeprefix(UNQUANTIZED): read_tensor(info) for name, info in self._infos().items()
                if name.startswith(UNQUANTIZED)}

    def dequantized(self, weights: list[Selected]) -> Mapping[str, torch.Tensor]:
        """The values of quantized weights, float32, by name, as the checkpoint stores them."""
        found = {}
        for selected in weights:
            value = torch.empty(selected.weight.shape)
            for part in selected.parts:
                if part.scheme:
                    value[selected.index_of(part)] = dequantize(self.read(selected, part))
            found[selected.weight.name] = value.T if selected.weight.transposed else value
        return found

    def _infos(self) -> dict:
        return {name: info for path in sorted(self.folder.glob("*.safetensors")) if not path.name.startswith("hidden-")
                for name, info in read_header(path).items()}

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        part = self.folder / f"{name}.part"
        save_file({key: value.contiguous() for key, value in tensors.items()}, part)
        part.rename(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
