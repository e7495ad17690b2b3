"""Opens artifacts in transformers: import this module, then call AutoModelForCausalLM.from_pretrained(folder).

The import registers a quantization config and a quantizer for the method "qtensor", and does nothing else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quant.errors import InputError
from quant.model.architectures import architecture_of
from quant.model.artifact_format import METHOD
from quant.model.safetensors_file import read_header
from quant.nn.decoding import speed_up_decoding
from quant.nn.modules import FusedLinear, QEmbedding, QLinear, QNorm, QTiedHead, QWeight
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme


@register_quantization_config(METHOD)
class QTensorConfig(QuantizationConfigMixin):
    """schemes: fields of each scheme; modules: module -> role -> {"scheme": index or None, "ranges": rows [start, stop)}."""

    def __init__(self, schemes: list[dict], modules: dict[str, dict], **_):
        self.quant_method = METHOD
        self.schemes, self.modules = schemes, modules


@register_quantizer(METHOD)
class QTensorQuantizer(HfQuantizer):
    """Swaps the modules that the artifact's config names, before weights are loaded into them."""

    requires_calibration = True  # an artifact is written by quant.model.artifact, never made while loading

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **_):
        config = self.quantization_config
        schemes = [Scheme.from_dict(values) for values in config.schemes]
        for name, parts in config.modules.items():
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
        return model

    def is_serializable(self):
        return True

    @property
    def is_trainable(self):
        return False


def _quantize_module(model: nn.Module, name: str, parts: dict[str, dict], schemes: list[Scheme]) -> None:
    old = model.get_submodule(name)
    shape, dtype, bias = tuple(old.weight.shape), old.weight.dtype, getattr(old, "bias", None)
    if type(old).__name__ == "Conv1D":  # GPT-2 stores [in, out]
        shape = shape[::-1]

    def weight_of(part: dict, rows: int) -> QWeight:
        return QWeight((rows, *shape[1:]), schemes[part["scheme"]], dtype)

    if len(parts) > 1:
        linears = {}
        for role, part in parts.items():
            rows = sum(stop - start for start, stop in part["ranges"])
            keeps = part["scheme"] is None
            linear = nn.Linear(shape[1], rows, bias=False, dtype=dtype) if keeps else QLinear(weight_of(part, rows))
            linears[role] = (linear, [tuple(r) for r in part["ranges"]])
        model.set_submodule(name, FusedLinear(linears, bias))
        return
    weight = weight_of(next(iter(parts.values())), shape[0])
    if isinstance(old, nn.Embedding):
        QEmbedding.convert(old, weight)
    else:
        model.set_submodule(name, QNorm(old, weight) if len(shape) == 1 else QLinear(weight, bias))


def _check_stored(model: nn.Module, files: list[Path]) -> None:
    """Check the headers of all files, and dtype and shape of every quantized weight's tensors, before any tensor is read.

    Raises InputError, which names the first tensor that differs from the artifact's config.
    """
    stored = {name: info for file in files for name, info in read_header(file).items()}
    weights = [(name, module) for name, module in model.named_modules() if files and isinstance(module, QWeight)]
    for name, weight in weights:
        for key, expected in layout(weight.shape, weight.scheme).items():
            info = stored.get(f"{name}.{key}")
            found = None if info is None else (info.dtype, info.shape)
            if found != expected:
                raise InputError(f"{name}.{key} is {_described(found)}, expected {_described(expected)} ({weight.scheme.label}); "
                                 "quantize the model again")


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
