"""The parameter `device`: where models run."""

from __future__ import annotations

from quant.config import check_choice
from quant.errors import InputError

DEVICES = ("auto", "cpu", "cuda")


def check_device(device: str) -> None:
    check_choice("device", device, DEVICES)


def resolve_device(device: str) -> str:
    """Resolve "auto" to cuda where there is a GPU, else to cpu. Raises InputError for cuda without a GPU."""
    import torch

    check_device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no CUDA GPU here; set device to auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
