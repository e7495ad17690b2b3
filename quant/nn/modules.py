"""Torch modules with quantized weights: linear, tied head, embedding and norm. Activations keep their dtype.

The weight of a linear, a tied head or an embedding is a QWeight, or has its rows in classes (quant.nn.classes).

While torch.compile traces a model, products are the operator of quant.kernels.operator and all else is plain torch: no kernel is
made and nothing is kept, because a result of a CUDA graph does not outlive its next run.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from quant import kernels
from quant.kernels import operator, reference
from quant.kernels.operands import Operands
from quant.model.architectures import Range
from quant.tensor.qtensor import QTensor, dequantize, layout
from quant.tensor.scheme import Scheme


class Weight(Protocol):
    """A quantized weight [out, in] as linears, heads and embeddings use it. dtype: what callers see as `weight.dtype`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> x W^T + bias, [..., out] in x's dtype."""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight: int64 of any shape -> [..., in] in `dtype`."""


class QWeight(nn.Module):
    """The stored tensors of a QTensor, named as in the artifact (see quant.tensor.qtensor.layout).

    dtype: what callers see as `weight.dtype`. version: counts replacements of the tensors or the kernel, so
    that holders of their addresses notice.
    """

    def __init__(self, shape: tuple[int, ...], scheme: Scheme, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.shape, self.scheme, self.dtype = tuple(shape), scheme, dtype
        self.version = 0
        self._matmul: kernels.Matmul | None = None
        self._dense: torch.Tensor | None = None
        # Parameters, not buffers: transformers asks a model's first parameter for its device.
        for name, (kind, size) in layout(self.shape, scheme).items():
            setattr(self, name, nn.Parameter(torch.zeros(size, dtype=kind), requires_grad=False))

    @property
    def qtensor(self) -> QTensor:
        """The weight as a QTensor, which shares the module's tensors."""
        return QTensor.from_tensors(self._parameters, self.shape, self.scheme)

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> x W^T + bias, [..., out] in x's dtype, by the kernel in use; by plain torch if x needs a gradient."""
        if torch.is_grad_enabled() and x.requires_grad:
            return reference.Matmul(self.qtensor)(x, bias)
        if torch.compiler.is_compiling():
            return operator.multiply(x, bias, self.operands())
        return self.matmul()(x, bias)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight: int64 of any shape -> [..., in] in `dtype`."""
        flat = rows.flatten()
        values = self.operands().dequantize(flat) if torch.compiler.is_compiling() else self.matmul().gather(flat)
        return values.to(self.dtype).view(*rows.shape, self.shape[1])

    def matmul(self) -> kernels.Matmul:
        """The kernel in use; the fastest one for the device is made at the first call."""
        if self._matmul is None:
            self._matmul = kernels.matmul_of(self.qtensor)
        return self._matmul

    def operands(self) -> Operands:
        """The weight as a graph takes it: of the kernel in use, if it has operands, else made anew."""
        return getattr(self._matmul, "operands", None) or Operands.of(self.qtensor)

    def multiply_with(self, matmul: kernels.Matmul) -> None:
        """Use this kernel instead of the fastest, to compare them."""
        self._changed()
        self._matmul = matmul

    def dense(self) -> torch.Tensor:
        """Dequantize the weight to `dtype` and cache the result: for the small weights of norms."""
        if self._dense is not None:
            return self._dense
        dense = dequantize(self.qtensor, self.dtype)
        if not torch.compiler.is_compiling():
            self._dense = dense
        return dense

    def prepare(self) -> None:
        """On a GPU, make what the first call would: a graph may be made of a model that has never run."""
        if self.codes.device.type == "cuda":
            self.matmul() if len(self.shape) > 1 else self.dense()

    def _apply(self, fn, recurse=True):
        self._changed()  # the tensors move
        moved = super()._apply(fn, recurse)
        self.prepare()
        return moved

    def _load_from_state_dict(self, *arguments):
        self._changed()
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_matmul": None, "_dense": None}  # a copy's kernel must not have addresses of this one's tensors

    def _changed(self) -> None:
        self._matmul = self._dense = None
        self.version += 1

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.scheme.label}"


class QLinear(nn.Module):
    """y = x W^T + b with a quantized W [out, in]; replaces Linear and GPT-2's Conv1D."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None = None):
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.multiply(x, self.bias)


class QTiedHead(nn.Module):
    """The head of a model that shares its weight with the embedding: multiplies with the embedding's codes.

    It has no tensor of its own, so there is one set of codes in memory, in the state dict and on disk.
    """

    def __init__(self, embedding: QEmbedding):
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that torch does not register it a second time

    @property
    def weight(self) -> Weight:
        return self._embedding[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.multiply(x, None)


class FusedLinear(nn.Module):
    """A matrix of several roles, such as q, k and v, which are quantized by different schemes or not at all.

    parts: role -> (a linear of its rows, without bias; its row ranges in the fused matrix).
    """

    def __init__(self, parts: dict[str, tuple[nn.Module, list[Range]]], bias: torch.Tensor | None = None):
        super().__init__()
        self.roles, self.ranges = tuple(parts), {role: tuple(ranges) for role, (_, ranges) in parts.items()}
        for role, (linear, _) in parts.items():
            self.add_module(role, linear)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        # On the CPU, whatever device the model is built on: this is an index, not a weight. The first call moves it.
        rows = [row for ranges in self.ranges.values() for start, stop in ranges for row in range(start, stop)]
        self.is_ordered = rows == list(range(len(rows)))
        order = [] if self.is_ordered else sorted(range(len(rows)), key=rows.__getitem__)
        self._order = torch.tensor(order, dtype=torch.long, device="cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([getattr(self, role)(x) for role in self.roles], dim=-1)
        if not self.is_ordered:
            if self._order.device != y.device:
                self._order = self._order.to(y.device)
            y = y.index_select(-1, self._order)
        return y if self.bias is None else y + self.bias


class QEmbedding(nn.Embedding):
    """An embedding that gathers codes and dequantizes only the rows it is asked for."""

    @classmethod
    def convert(cls, embedding: nn.Embedding, weight: Weight) -> None:
        """Turn an embedding into a quantized one in place.

        A model's own subclass (Gemma scales the rows, OPT shifts the positions) keeps its methods: this class
        is inserted between it and nn.Embedding, so that its call of super().forward lands here.
        """
        kind = type(embedding)
        embedding.__class__ = cls if kind is nn.Embedding else type(f"Q{kind.__name__}", (kind, cls), {})
        del embedding._parameters["weight"]
        embedding.weight = weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.weight.gather(indices)


class QNorm(nn.Module):
    """A LayerNorm or RMSNorm whose weight is quantized; the norm's own forward does the rest."""

    def __init__(self, norm: nn.Module, weight: QWeight):
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", getattr(norm, "bias", None))
        norm._parameters.clear()
        self._norm = (norm,)  # in a tuple, so that torch does not register the emptied norm
        norm.weight = None
        if self.bias is not None:
            norm.register_parameter("bias", None)

    @property
    def norm(self) -> nn.Module:
        """The model's own norm, emptied of its weights."""
        return self._norm[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, weight = self.norm, self.weight.dense()
        if torch.compiler.is_compiling():
            before = norm.weight
            self._lend(weight, self.bias)
            y = norm.forward(x)
            self._lend(before, None if before is None else self.bias)
            return y
        if norm.weight is not weight:
            self._lend(weight, self.bias)
        return norm.forward(x)

    def _lend(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        """Give the norm what its forward takes for its own."""
        self.norm.weight = weight
        if self.bias is not None:
            self.norm.bias = bias
