"""Decodes as transformers' `generate(cache_implementation="static")` does on a GPU: the cache has a fixed size, the model is
compiled.

A step that Python starts product by product waits for Python, not for the GPU; a compiled one is replayed from a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import CompileConfig
from transformers.cache_utils import StaticCache


class CompiledDecoder:
    """One text, token by token. length: tokens that the cache has room for. backend: of torch.compile.

    is_compiled: whether `decode` runs a compiled graph. False for a model whose quantizer says that it can't be compiled, and
    from the first token on for one that does not become a single graph: these run step by step.
    """

    def __init__(self, model: nn.Module, length: int, backend: str = "inductor"):
        self._model, self._length = model, length
        self._cache: StaticCache | None = None
        quantizer = getattr(model, "hf_quantizer", None)
        self.is_compiled = quantizer is None or quantizer.is_compileable
        mode = "reduce-overhead" if backend == "inductor" else None  # transformers' own choice
        config = CompileConfig(fullgraph=True, backend=backend, mode=mode)
        self._forward = model.get_compiled_call(config) if self.is_compiled else model.__call__

    @torch.no_grad()  # as `generate`; graphs made within inference mode are others
    def prefill(self, tokens: torch.Tensor) -> torch.Tensor:
        """Empty the cache and read a prompt, int64 [1, length], without a graph; returns the logits of its last token."""
        if self._cache is None:
            self._cache = StaticCache(config=self._model.config.get_text_config(decoder=True), max_cache_len=self._length)
        self._cache.reset()
        return self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[0, -1]

    @torch.no_grad()
    def decode(self, token: torch.Tensor) -> torch.Tensor:
        """Append a token, int64 [1, 1]; returns its logits, which the next call may overwrite."""
        given = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": 1}
        try:
            output = self._forward(token, **given)
        except torch._dynamo.exc.Unsupported:  # raised while tracing, before the cache is written to
            self.is_compiled, self._forward = False, self._model.__call__
            output = self._forward(token, **given)
        return output.logits[0, -1]
