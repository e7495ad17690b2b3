"""Models that transformers opens: the base, our artifacts, bitsandbytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import quant.transformers_format  # noqa: F401  registers our artifacts' format
from quant.checkpoint import Checkpoint
from quant.runners.bfloat16 import compute_in_float32, has_bfloat16


class TransformersRunner:
    def __init__(self, folder: Path, dtype: str, device: str, threads: int | None = None):
        if threads:
            torch.set_num_threads(threads)
        disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of its fp16 activations at every call
        Checkpoint(folder)  # its headers are checked before anything trusts them
        self.device = torch.device(device)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True, trust_remote_code=False
        ).eval().to(self.device)
        if dtype == "bfloat16" and not has_bfloat16(self.device):
            compute_in_float32(self.model)
        config = self.model.config
        self.vocabulary = config.vocab_size
        self.context = getattr(config, "max_position_embeddings", None) or config.n_positions
        self._cache = None

    @torch.inference_mode()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens.to(self.device), use_cache=False).logits.float()

    @torch.inference_mode()
    def prefill(self, tokens: torch.Tensor) -> int:
        self._cache = None
        return self._step(tokens.view(1, -1).to(self.device))

    @torch.inference_mode()
    def decode(self, token: int) -> int:
        return self._step(torch.tensor([[token]], device=self.device))

    def _step(self, tokens: torch.Tensor) -> int:
        output = self.model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())

    def tensors(self) -> list[tuple[str, str, int]]:
        seen: dict[int, tuple[str, str, int]] = {}
        for name, tensor in _weights(self.model):
            storage = tensor.untyped_storage()
            if storage.nbytes():
                held = (name, str(tensor.dtype).removeprefix("torch."), tensor.numel() * tensor.element_size())
                seen.setdefault(storage.data_ptr(), held)
        return list(seen.values())


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers, and the scales that bitsandbytes keeps beside its parameters."""
    for name, parameter in model.named_parameters():
        yield name, parameter.data
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # double quantization nests a second state for the scales
            yield f"{name}.absmax", state.absmax
            yield f"{name}.code", state.code
            if getattr(state, "offset", None) is not None:
                yield f"{name}.offset", state.offset
            name, state = f"{name}.nested", getattr(state, "state2", None)
    for name, module in model.named_modules():  # int8: beside the weight before the first call, in the state after it
        for holder in (getattr(module, "weight", None), getattr(module, "state", None)):
            for attribute in ("CB", "SCB"):
                if isinstance(getattr(holder, attribute, None), torch.Tensor):
                    yield f"{name}.weight.{attribute}", getattr(holder, attribute)
    saved = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name in saved:
            yield name, buffer
