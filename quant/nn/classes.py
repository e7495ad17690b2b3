"""A weight whose rows are in classes, each with a scheme of its own, such as an embedding with more bits for frequent tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from quant.nn.modules import QWeight
from quant.tensor.scheme import Scheme


class ClassedWeight(nn.Module):
    """The stored tensors of a matrix in classes of rows, named as in the artifact; callers see the rows in their own order.

    classes: uint8 [rows], the class of each row. class0, class1, ...: the rows of a class in ascending order, as a QWeight, or as
    a tensor if the class has no scheme. counts: number of rows of each class. dtype, version: as for a QWeight.
    """

    def __init__(self, counts: Sequence[int], columns: int, schemes: Sequence[Scheme | None], dtype: torch.dtype = torch.float32):
        super().__init__()
        self.shape, self.counts, self.dtype = (sum(counts), columns), tuple(counts), dtype
        self._version = 0
        self._rows: tuple[torch.Tensor, ...] | None = None
        self.classes = nn.Parameter(torch.zeros(self.shape[0], dtype=torch.uint8), requires_grad=False)
        for number, (count, scheme) in enumerate(zip(counts, schemes, strict=True)):
            if scheme:
                part = QWeight((count, columns), scheme, dtype)
            else:
                part = nn.Parameter(torch.zeros(count, columns, dtype=dtype), requires_grad=False)
            setattr(self, f"class{number}", part)

    @property
    def parts(self) -> list[QWeight | torch.Tensor]:
        """The weight of each class; tensors without gradients, as transformers makes every floating parameter trainable."""
        parts = (getattr(self, f"class{number}") for number in range(len(self.counts)))
        return [part if isinstance(part, QWeight) else part.detach() for part in parts]

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., in] -> x W^T + bias, [..., out] in x's dtype, class by class by the kernels of their weights."""
        y = torch.empty((*x.shape[:-1], self.shape[0]), dtype=x.dtype, device=x.device)
        for part, rows in zip(self.parts, self.rows(), strict=True):
            own = None if bias is None else bias[rows]
            product = part.multiply(x, own) if isinstance(part, QWeight) else nn.functional.linear(x, part.to(x.dtype), own)
            y.index_copy_(-1, rows, product)  # several times faster than concatenating the products and reordering them
        return y

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Dequantize some rows of the weight: int64 of any shape -> [..., in] in `dtype`."""
        wanted = rows.flatten()
        classes = self.classes.index_select(0, wanted)  # raises IndexError for negative numbers too
        if wanted.device.type != "cpu" or torch.compiler.is_compiling():
            return self._gather_of_all(wanted, classes).view(*rows.shape, self.shape[1])
        values = torch.empty((len(wanted), self.shape[1]), dtype=self.dtype, device=wanted.device)
        for number in classes.unique().tolist():
            part, places = self.parts[number], (classes == number).nonzero().flatten()
            inside = torch.searchsorted(self.rows()[number], wanted[places])
            values[places] = part.gather(inside) if isinstance(part, QWeight) else part[inside].to(self.dtype)
        return values.view(*rows.shape, self.shape[1])

    def _gather_of_all(self, wanted: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """As `gather`, for rows int64 [n] of these classes, from every class: nothing waits for a GPU to tell which there are."""
        values = torch.zeros((len(wanted), self.shape[1]), dtype=self.dtype, device=wanted.device)
        for number, (part, rows) in enumerate(zip(self.parts, self.rows(), strict=True)):
            inside = torch.searchsorted(rows, wanted).clamp(max=len(rows) - 1)
            found = part.gather(inside) if isinstance(part, QWeight) else part[inside].to(self.dtype)
            values = torch.where((classes == number).unsqueeze(1), found, values)
        return values

    def rows(self) -> tuple[torch.Tensor, ...]:
        """The rows of each class, int64 and ascending; computed from `classes` at the first call."""
        if self._rows is not None:
            return self._rows
        rows = torch.argsort(self.classes.detach(), stable=True).split(self.counts)
        if not torch.compiler.is_compiling():
            self._rows = rows
        return rows

    @property
    def version(self) -> int:
        return self._version + sum(part.version for part in self.parts if isinstance(part, QWeight))

    @property
    def device(self) -> torch.device:
        return self.classes.device

    def _apply(self, fn, recurse=True):
        self._changed()  # the tensors move
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments):
        self._changed()
        super()._load_from_state_dict(*arguments)

    def _changed(self) -> None:
        self._rows = None
        self._version += 1

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, rows by class: {', '.join(map(str, self.counts))}"
