"""A checkpoint: a Hugging Face folder with a config and safetensors. Tensors are read one by one; no torch module is built."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from quant.errors import InputError
from quant.model.config import read_config
from quant.model.folder import weight_paths
from quant.model.inventory import Inventory, second_copy_of_tied, take_inventory
from quant.model.safetensors_file import TensorInfo, read_header, read_tensor, same_bytes


class Checkpoint:
    """The config and the tensors, by name, of a Hugging Face folder. Raises InputError for a folder that is not one.

    A tensor may stand in two shards only if both have the same bytes.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self.tensors: dict[str, TensorInfo] = {}
        for path in weight_paths(self.folder):
            for name, info in read_header(path).items():
                if name in self.tensors and not same_bytes(self.tensors[name], info):
                    raise InputError(f"{folder} stores {name} with different values in {self.tensors[name].file.name} and in "
                                     f"{path.name}; fetch the model again")
                self.tensors[name] = info
        if not self.tensors:
            raise InputError(f"{folder} holds no tensor; expected the weights of a model")

    @cached_property
    def inventory(self) -> Inventory:
        """The model's weights. Raises InputError for an unknown architecture or an incomplete model.

        A tied weight may be stored twice only if both copies have the same bytes: transformers does not tie them otherwise.
        """
        tied = second_copy_of_tied(self.config, self.tensors)
        if tied and not same_bytes(*(self.tensors[name] for name in tied)):
            raise InputError(f"{self.folder} ties the head to the embedding, but stores {tied[0]} and {tied[1]} with different "
                             "values, which transformers does not tie; set tie_word_embeddings to false in its config.json")
        return take_inventory(self.config, self.tensors)

    def read(self, name: str, buffer: torch.Tensor | None = None) -> torch.Tensor:
        """One tensor, in the dtype it is stored in; see `read_tensor`."""
        return read_tensor(self.tensors[name], buffer)

    def buffer(self) -> torch.Tensor:
        """A buffer for `read` that fits the largest tensor: reusing it avoids an allocation per tensor."""
        return torch.empty(max((info.bytes for info in self.tensors.values()), default=0), dtype=torch.uint8)
