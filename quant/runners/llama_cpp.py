"""GGUF models, run by llama.cpp through its low-level functions, on token ids given from outside."""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path

import numpy
import torch

from quant.errors import InputError
from quant.methods import llama_cpp
from quant.methods.gguf import check_gguf


class LlamaCppRunner:
    def __init__(self, path: Path, threads: int | None = None):
        check_gguf(path)
        self._api = api = llama_cpp.bindings()
        self._path = path
        self._model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self._model:
            raise InputError(f"llama.cpp can't load {path}; make it again with dvc repro")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self.context = api.llama_model_n_ctx_train(self._model)
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = self.context
        options.n_threads = options.n_threads_batch = threads or os.cpu_count() or 1
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            raise InputError(f"llama.cpp can't make a context of {self.context} tokens for {path}")
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

    def tensors(self) -> list[tuple[str, str, int]]:
        from gguf import GGUFReader

        return [(t.name, t.tensor_type.name.lower(), int(t.n_bytes)) for t in GGUFReader(self._path).tensors]

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
        """The last call's logits, float32 [count, vocabulary], copied out of llama.cpp's memory."""
        pointer = self._api.llama_get_logits(self._context)
        array = numpy.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (count, self.vocabulary))
        return array.copy()


def _free(api, batch, context, model) -> None:
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
