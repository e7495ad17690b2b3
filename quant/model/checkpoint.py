"""A checkpoint: a Hugging Face folder with a config and tensors of safetensors. The model is never built."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import torch

from quant.errors import InputError, first_line
from quant.files import read_json
from quant.model.folder import weight_paths
from quant.model.inventory import Inventory, take_inventory
from quant.model.safetensors_file import TensorInfo, read_header, read_tensor


class Checkpoint:
    """A Hugging Face folder: its config and its tensors, by name."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self.tensors: dict[str, TensorInfo] = {}
        for path in weight_paths(self.folder):
            self.tensors.update(read_header(path))
        if not self.tensors:
            raise InputError(f"{folder} holds no tensor; expected the weights of a model")

    @cached_property
    def inventory(self) -> Inventory:
        """The model's weights. Raises InputError for an unknown architecture."""
        return take_inventory(self.config, self.tensors)

    def read(self, name: str, buffer: torch.Tensor | None = None) -> torch.Tensor:
        """One tensor, in the dtype it is stored in; see `read_tensor`."""
        return read_tensor(self.tensors[name], buffer)

    def buffer(self) -> torch.Tensor:
        """Memory to read any of the tensors into, one after the other: its pages are fetched from the system only once."""
        return torch.empty(max((info.bytes for info in self.tensors.values()), default=0), dtype=torch.uint8)


def read_config(folder: Path) -> dict:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json; expected a Hugging Face model folder")
    try:
        config = read_json(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}); fetch the model again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{path} names no model_type; expected the config of a causal language model")
    return config
