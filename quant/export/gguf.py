"""Writes an artifact as a GGUF file, which llama.cpp and what is built on it open.

llama.cpp's converter and quantizer make a file of the dequantized weights, with their metadata, tokenizer and the tensor types
that hold the artifact's codes; then its data is replaced by these codes. No weight is quantized again.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from quant.errors import InputError
from quant.files import atomic_file, write_json
from quant.gguf.quantizer import run_quantizer
from quant.gguf.tensors import overwrite, places, types_of
from quant.methods.llama_cpp.convert import convert
from quant.model.architectures import architecture_of
from quant.model.artifact_format import METHOD
from quant.model.checkpoint import Checkpoint
from quant.model.folder import copy_companions
from quant.model.safetensors_file import TensorInfo, write_checkpoint
from quant.tensor.ggml_exact import as_type, fitting_type
from quant.tensor.qtensor import QTensor, dequantize, layout
from quant.tensor.scheme import Scheme

FILE_TYPES = {"Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0", "Q2_K": "Q2_K", "Q3_K": "Q3_K_S",
              "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "Q6_K": "Q6_K"}  # what a file is called, by the type of most of its weights
SIZES = list(FILE_TYPES)


def write(artifact: Path, out: Path) -> None:
    """Write the artifact in the folder `artifact` to the file `out`.

    Raises InputError, before anything is written, for the first weight that no type of GGUF can hold exactly, and where llama.cpp
    does not know the model.
    """
    checkpoint = Checkpoint(artifact)
    saved = checkpoint.config.get("quantization_config") or {}
    if saved.get("quant_method") != METHOD:
        raise InputError(f"{artifact} is not an artifact of this pipeline: its quant_method is {saved.get('quant_method')!r}, "
                         f"expected {METHOD!r}; give the folder of a variant with method: quant or calibrated")
    schemes = [Scheme.from_dict(values) for values in saved["schemes"]]
    modules = {name: _Module(name, parts, schemes, checkpoint) for name, parts in saved["modules"].items()}
    kinds = {name: module.kind for name, module in modules.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_dequantized(checkpoint, modules, folder / "base")
        convert(folder / "base", folder / "converted")
        source, base = folder / "converted" / "model.gguf", Checkpoint(folder / "base")
        found = places(source, base)
        tensors = {tensor: place for tensor, place in found.items() if place.weight.module in kinds and not place.weight.is_bias}
        wanted = {tensor: kinds[place.weight.module] for tensor, place in tensors.items()}
        types = {tensor: wanted.get(tensor, kind) for tensor, kind in types_of(source).items()}  # all others stay in float
        most = Counter(wanted.values()).most_common(1)[0][0]
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as partial:
            run_quantizer(source, partial, FILE_TYPES[most], kinds=types)
            made = types_of(partial)
            for tensor, kind in wanted.items():
                if made[tensor] == "F32":  # as positions are stored: the dequantized values, which float32 holds
                    del tensors[tensor]
                elif made[tensor] != kind:
                    raise InputError(f"llama.cpp stores {tensor} as {made[tensor]}, which can't hold {kind}; leave it out of the "
                                     "row's weights")
            overwrite(partial, {tensor: place.arranged(modules[place.weight.module].blocks())
                                for tensor, place in tensors.items()})
    counts = Counter(kind for kind in made.values() if kind in FILE_TYPES)
    print(f"{out}: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}; "
          f"{out.stat().st_size / 2**20:.2f} MiB", flush=True)


class _Module:
    """A quantized module of an artifact: its parts, and the type that holds all of them."""

    def __init__(self, name: str, parts: dict, schemes: list[Scheme], checkpoint: Checkpoint):
        self.name, self.parts, self.schemes, self.checkpoint = name, parts, schemes, checkpoint
        try:
            stored = list(self._shapes())
            self.shape = sum(shape[0] for _, _, shape, _ in stored), stored[0][2][1]
            self.kind = _common([fitting_type(scheme, shape[1]) for _, scheme, shape, _ in stored])
            for _, tensor in self._stored():  # here, so that a scale that does not fit is told before any work
                as_type(tensor, self.kind)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None

    def _shapes(self) -> Iterator[tuple[str, Scheme, tuple[int, int], torch.Tensor]]:
        """Of each part: the name of its tensors, its scheme, its shape, and its rows."""
        classes = f"{self.name}.weight.classes"
        numbers = self.checkpoint.read(classes) if classes in self.checkpoint.tensors else None
        for part, about in self.parts.items():
            if about["scheme"] is None:
                raise InputError(f"{part} stays in float, and GGUF has one type for a matrix; quantize all of it")
            scheme = self.schemes[about["scheme"]]
            if numbers is not None:
                stem, rows = f"{self.name}.weight.{part}", (numbers == int(part.removeprefix("class"))).nonzero().flatten()
            else:
                stem = f"{self.name}.weight" if len(self.parts) == 1 else f"{self.name}.{part}.weight"
                rows = torch.cat([torch.arange(start, stop) for start, stop in about["ranges"]])
            codes = self.checkpoint.tensors[f"{stem}.codes"].shape
            yield stem, scheme, (codes[0], codes[1] * 8 // scheme.bits), rows  # rows of whole blocks are whole bytes of codes

    def _stored(self) -> Iterator[tuple[torch.Tensor, QTensor]]:
        """The rows of each part, and what is stored of them."""
        for stem, scheme, shape, rows in self._shapes():
            read = {key: self.checkpoint.read(f"{stem}.{key}") for key in layout(shape, scheme)}
            yield rows, QTensor.from_tensors(read, shape, scheme)

    def blocks(self) -> torch.Tensor:
        """uint8 [rows, bytes of a row]"""
        return self._joined(lambda tensor: as_type(tensor, self.kind))

    def values(self) -> torch.Tensor:
        """float32 [rows, columns]"""
        return self._joined(dequantize)

    def _joined(self, function) -> torch.Tensor:
        parts = [(rows, function(tensor)) for rows, tensor in self._stored()]
        whole = torch.empty((sum(len(rows) for rows, _ in parts), parts[0][1].shape[1]), dtype=parts[0][1].dtype)
        for rows, values in parts:
            whole[rows] = values
        return whole


def _common(kinds: list[str]) -> str:
    """The type that holds weights of several: the largest of one kind. Raises InputError where there is none."""
    if len(set(kinds)) == 1:
        return kinds[0]
    for family in (("Q4_0", "Q5_0", "Q8_0"), ("Q4_1", "Q5_1")):
        if set(kinds) <= set(family):
            return max(kinds, key=SIZES.index)
    raise InputError(f"its parts need {', '.join(sorted(set(kinds)))}, and GGUF has one type for a matrix; quantize them alike")


def _write_dequantized(checkpoint: Checkpoint, modules: dict[str, _Module], folder: Path) -> None:
    """Write the artifact as a plain checkpoint, quantized weights as float32, for llama.cpp's converter."""
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    values = {f"{name}.weight": module for name, module in modules.items()}
    transposed = {f"{name}.weight": architecture_of(config).is_transposed(name) for name in modules}
    stems = tuple(f"{name}." for name in modules)
    kept = {name: info for name, info in checkpoint.tensors.items() if not name.startswith(stems) or name.endswith(".bias")}
    infos = {name: TensorInfo(info.dtype, info.shape) for name, info in kept.items()}
    infos |= {name: TensorInfo(torch.float32, module.shape[::-1] if transposed[name] else module.shape)
              for name, module in values.items()}

    def produce() -> Iterator[tuple[str, torch.Tensor]]:
        for name in infos:
            if name in values:
                value = values[name].values()
                yield name, (value.T if transposed[name] else value).contiguous()
            else:
                yield name, checkpoint.read(name)

    folder.mkdir()
    write_checkpoint(folder, infos, produce())
    write_json(folder / "config.json", config)
    copy_companions(checkpoint.folder, folder)
