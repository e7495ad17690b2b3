"""GGUF models, run by llama.cpp through its low-level functions. Token ids come from the caller, not from its tokenizer."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch

from quant.device import cores
from quant.errors import InputError, Refused
from quant.gguf.header import check_gguf, check_hash
from quant.gguf.library import bindings
from quant.gguf.probe import try_in_child
from quant.runners import Options, StoredTensor

ROLES = {
    "attn_q": ("q",), "attn_k": ("k",), "attn_v": ("v",), "attn_qkv": ("q", "k", "v"), "attn_output": ("o",),
    "ffn_up": ("up",), "ffn_gate": ("gate",), "ffn_down": ("down",), "token_embd": ("embedding",),
    "position_embd": ("embedding",), "output": ("head",),
}  # fmt: skip
FLOATS = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Bytes of a block's scales and zeros (lowest values), from ggml-common.h; the other bytes of a block are codes. K-quants pack
# inner scales and zeros together: half of these bytes are counted for each.
BLOCK_LAYOUTS = {
    "q4_0": (2, 0), "q4_1": (2, 2), "q5_0": (2, 0), "q5_1": (2, 2), "q8_0": (2, 0), "q2_k": (10, 10), "q3_k": (14, 0),
    "q4_k": (8, 8), "q5_k": (8, 8), "q6_k": (18, 0), "iq4_nl": (2, 0), "iq4_xs": (8, 0), "tq1_0": (2, 0), "tq2_0": (2, 0),
}  # fmt: skip


class Runner:
    """The model.gguf of a folder, on the CPU. llama.cpp chooses the dtype of activations itself."""

    is_thread_safe = is_compiled = False

    def __init__(self, folder: Path, options: Options):
        path = Path(folder) / "model.gguf"
        if not path.is_file():
            raise InputError(f"{folder} has no model.gguf; make it with dvc repro")
        check_gguf(path)
        if not check_hash(path):
            try_in_child(path)
        self._api = api = bindings()
        self._path = path
        self._model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self._model:
            raise Refused(f"llama.cpp can't load {path}; make it again with dvc repro")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self.context = min(api.llama_model_n_ctx_train(self._model), options.max_tokens or sys.maxsize)
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self.context
        # without OpenMP, so told here; its waiting threads keep their cores
        settings.n_threads = settings.n_threads_batch = options.threads or cores()
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise InputError(f"llama.cpp can't make a context of {self.context} tokens for {path}; make "
                             "evaluate.context or benchmark.prompts smaller")
        self._batch = api.llama_batch_init(self.context, 0, 1)
        self._length = 0
        weakref.finalize(self, _free, api, self._batch, self._context, self._model)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in tokens.tolist():
            self._restart()
            self._feed(row, every_logit=True)
            rows.append(self._read_logits(len(row)))
        return torch.from_numpy(numpy.stack(rows))

    def prefill(self, tokens: torch.Tensor) -> int:
        self._restart()
        self._feed(tokens.tolist(), every_logit=False)
        return int(self._read_logits(1).argmax())

    def decode(self, token: int) -> int:
        self._feed([token], every_logit=False)
        return int(self._read_logits(1).argmax())

    def tensors(self) -> list[StoredTensor]:
        reader = self._read_file()
        names = {tensor.name for tensor in reader.tensors}
        return [part for tensor in reader.tensors for part in _parts(tensor, is_tied="output.weight" not in names)]

    def module_counts(self) -> dict[str, int]:
        kinds = Counter(f"GGUF {tensor.tensor_type.name.lower()}" for tensor in self._read_file().tensors)
        return dict(sorted(kinds.items()))

    def _read_file(self):
        from gguf import GGUFReader

        return GGUFReader(self._path)

    def _restart(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._length = 0

    def _feed(self, tokens: list[int], every_logit: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self._length + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every_logit or i == len(tokens) - 1
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode failed with status {status} on {len(tokens)} tokens at {self._length}")
        self._length += len(tokens)

    def _read_logits(self, count: int) -> numpy.ndarray:
        """Logits of the last call, float32 [count, vocabulary], copied from llama.cpp's memory."""
        pointer = self._api.llama_get_logits(self._context)
        array = numpy.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (count, self.vocabulary))
        return array.copy()


def import_libraries(folder: Path) -> None:
    bindings()
    check_hash(Path(folder) / "model.gguf")  # here, so that loading is timed without it


def _parts(tensor, is_tied: bool) -> Iterator[StoredTensor]:
    """Split a tensor of a GGUF file into its parts: codes, scales and zeros, or floats, or blocks of unknown layout."""
    from gguf import GGML_QUANT_SIZES

    kind, size = tensor.tensor_type.name.lower(), int(tensor.n_bytes)
    roles = _roles(tensor.name, is_tied)
    if kind in FLOATS or kind not in BLOCK_LAYOUTS:
        yield StoredTensor(tensor.name, roles, "floats" if kind in FLOATS else "blocks", FLOATS.get(kind, kind), size)
        return
    scales, zeros = BLOCK_LAYOUTS[kind]
    block = GGML_QUANT_SIZES[tensor.tensor_type][1]
    for part, share in (("codes", block - scales - zeros), ("scales", scales), ("zeros", zeros)):
        if share:
            yield StoredTensor(tensor.name, roles, part, kind, size // block * share)


def _roles(name: str, is_tied: bool) -> tuple[str, ...]:
    """Roles by the tensor's name: blk.0.attn_q.weight is q. is_tied: the embedding is the head too."""
    kind = name.split(".")[2 if name.startswith("blk.") else 0]
    if kind.endswith("norm"):
        return ("norm",)
    return ("embedding", "head") if is_tied and kind == "token_embd" else ROLES.get(kind, ("other",))


def _free(api, batch, context, model) -> None:
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
