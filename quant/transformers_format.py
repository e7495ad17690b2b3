"""Opens artifacts in transformers: import this module, then call AutoModelForCausalLM.from_pretrained(folder).

The import registers a quantization config and a quantizer for the method "qtensor", and does nothing else.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quant.errors import InputError
from quant.model.architectures import architecture_of
from quant.model.artifact_format import METHOD, check_quantization
from quant.model.safetensors_file import TensorInfo, read_header, read_tensor
from quant.nn.classes import ClassedWeight
from quant.nn.decoding import speed_up_decoding
from quant.nn.modules import FusedLinear, QEmbedding, QLinear, QNorm, QTiedHead, QWeight
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme


@register_quantization_config(METHOD)
class QTensorConfig(QuantizationConfigMixin):
    """The `quantization_config` entry of an artifact's config.json; quant.model.artifact_format describes it."""

    def __init__(self, schemes: list[dict], modules: dict[str, dict], **_):
        self.quant_method = METHOD
        self.schemes, self.modules = schemes, modules


@register_quantizer(METHOD)
class QTensorQuantizer(HfQuantizer):
    """Swaps the modules that the artifact's config names, before weights are loaded into them."""

    requires_calibration = True  # an artifact is written by quant.model.artifact, never made while loading

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **_):
        config = self.quantization_config
        schemes = check_quantization(config.schemes, config.modules)
        for name, parts in config.modules.items():
            if "class0" not in parts:  # classes have their own check
                _check_rows(model, name, parts)
            try:
                _quantize_module(model, name, parts, schemes)
            except AttributeError:
                raise InputError(f"the artifact quantizes {name}, which {type(model).__name__} does not have; "
                                 "the artifact and its config.json belong to different models") from None
        _share_tied_head(model)
        _check_stored(model, [Path(file) for file in checkpoint_files or []])
        return model

    def _process_model_after_weight_loading(self, model, **_):
        speed_up_decoding(model)
        for module in model.modules():
            if isinstance(module, QWeight):
                module.prepare()
        return model

    def is_serializable(self):
        return True

    @property
    def is_compileable(self):
        """Whether `generate` with a static cache compiles the model, which it does on a GPU."""
        return True

    @property
    def is_trainable(self):
        return False


def _check_rows(model: nn.Module, name: str, parts: dict[str, dict]) -> None:
    """Raise InputError unless the parts of a module are rows that it has: memory is reserved by them."""
    try:
        old = model.get_submodule(name)
        shape = tuple(old.weight.shape)
        rows = shape[1 if type(old).__name__ == "Conv1D" else 0] if len(shape) > 1 else 1  # a vector is one row
    except AttributeError:
        return  # told by the caller
    ranges = [given for part in parts.values() for given in part.get("ranges", [[0, part.get("rows", 0)]])]
    wanted, largest = sum(stop - start for start, stop in ranges), max(stop for _, stop in ranges)
    if wanted != rows or largest > rows:
        raise InputError(f"the artifact's parts of {name} are {wanted:,} rows up to {largest:,}, the module has {rows:,}; "
                         "quantize the model again")


def _quantize_module(model: nn.Module, name: str, parts: dict[str, dict], schemes: list[Scheme]) -> None:
    old = model.get_submodule(name)
    shape, dtype, bias = tuple(old.weight.shape), old.weight.dtype, getattr(old, "bias", None)
    if type(old).__name__ == "Conv1D":  # GPT-2 stores [in, out]
        shape = shape[::-1]

    def weight_of(part: dict, rows: int) -> QWeight:
        return QWeight((rows, *shape[1:]), schemes[part["scheme"]], dtype)

    is_classed = "class0" in parts
    if len(parts) > 1 and not is_classed:
        linears = {}
        for role, part in parts.items():
            rows = sum(stop - start for start, stop in part["ranges"])
            keeps = part["scheme"] is None
            linear = nn.Linear(shape[1], rows, bias=False, dtype=dtype) if keeps else QLinear(weight_of(part, rows))
            linears[role] = (linear, [tuple(r) for r in part["ranges"]])
        model.set_submodule(name, FusedLinear(linears, bias))
        return
    weight = _classed(name, shape, parts, schemes, dtype) if is_classed else weight_of(next(iter(parts.values())), shape[0])
    if isinstance(old, nn.Embedding):
        QEmbedding.convert(old, weight)
    else:
        model.set_submodule(name, QNorm(old, weight) if len(shape) == 1 else QLinear(weight, bias))


def _classed(name: str, shape: tuple[int, ...], parts: dict[str, dict], schemes: list[Scheme],
             dtype: torch.dtype) -> ClassedWeight:
    """The weight of a module whose rows are in classes. Raises InputError unless the config's classes make up all its rows."""
    by_number = [parts.get(f"class{number}", {}) for number in range(len(parts))]  # JSON sorts class10 before class2
    counts, places = ([part.get(key) for part in by_number] for key in ("rows", "scheme"))
    if len(shape) != 2 or not all(isinstance(count, int) and count > 0 for count in counts) or sum(counts) != shape[0]:
        raise InputError(f"{name} has the classes {', '.join(parts)} with {', '.join(map(str, counts))} rows, expected class0 to "
                         f"class{len(parts) - 1} with all rows of a matrix {list(shape)}; quantize the model again")
    if not set(places) <= {None, *range(len(schemes))}:
        raise InputError(f"{name} has classes of the schemes {', '.join(map(str, places))}, expected null or numbers below "
                         f"{len(schemes)}; quantize the model again")
    return ClassedWeight(counts, shape[1], [None if place is None else schemes[place] for place in places], dtype)


def _check_stored(model: nn.Module, files: list[Path]) -> None:
    """Check the headers of all files, dtype and shape of every quantized weight's tensors, and the classes of rows, before any
    weight is read.

    Raises InputError, which names the first tensor that differs from the artifact's config.
    """
    stored = {name: info for file in files for name, info in read_header(file).items()}
    for name, module in model.named_modules() if files else ():
        if isinstance(module, QWeight):
            for key, expected in layout(module.shape, module.scheme).items():
                _check_tensor(stored, f"{name}.{key}", expected, module.scheme.label)
        elif isinstance(module, ClassedWeight):
            _check_classes(stored, name, module)


def _check_tensor(stored: dict[str, TensorInfo], name: str, expected: tuple[torch.dtype, tuple[int, ...]], label: str) -> None:
    info = stored.get(name)
    found = None if info is None else (info.dtype, info.shape)
    if found != expected:
        raise InputError(f"{name} is {_described(found)}, expected {_described(expected)} ({label}); quantize the model again")


def _check_classes(stored: dict[str, TensorInfo], name: str, weight: ClassedWeight) -> None:
    """Check the class of every row, and the rows that are not quantized; those that are have modules of their own."""
    for number, part in enumerate(weight.parts):
        if not isinstance(part, QWeight):
            info = stored.get(f"{name}.class{number}")
            dtype = info.dtype if info and info.dtype.is_floating_point else part.dtype  # any floating dtype is converted
            _check_tensor(stored, f"{name}.class{number}", (dtype, tuple(part.shape)), "rows without a scheme")
    _check_tensor(stored, f"{name}.classes", (torch.uint8, weight.shape[:1]), "the class of each row")
    with torch.device("cpu"):  # transformers builds the model on the meta device
        counts = torch.bincount(read_tensor(stored[f"{name}.classes"]), minlength=len(weight.counts)).tolist()
    for number, (found, expected) in enumerate(zip_longest(counts, weight.counts, fillvalue=0)):
        if found != expected:
            raise InputError(f"{name}.classes has {found} rows of class {number}, expected {expected}; quantize the model again")


def _described(stored: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if stored is None else f"{str(stored[0]).removeprefix('torch.')} {list(stored[1])}"


def _share_tied_head(model: nn.Module) -> None:
    """Make a head that is tied to a quantized embedding use the embedding's codes."""
    architecture = architecture_of(model.config.to_dict())
    embedding = model.get_submodule(architecture.main_embedding)
    if not architecture.is_tied(model.config.to_dict()) or not isinstance(embedding, QEmbedding):
        return
    model.set_submodule(architecture.head, QTiedHead(embedding))
    model._tied_weights_keys, model.all_tied_weights_keys = None, {}
