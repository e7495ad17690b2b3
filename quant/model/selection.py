"""Selection: which scheme each part of each weight has, given by a recipe (select) or row by row (with_classes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from quant.errors import InputError, Refused
from quant.model.architectures import GROUPS, ROLES, Range
from quant.model.inventory import Inventory, Weight
from quant.model.recipe import Recipe, is_role
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme

MOST_CLASSES = 256  # a row's class is stored in one byte


@dataclass(frozen=True)
class Part:
    """Rows of a weight that are stored together. scheme: None leaves them unquantized."""

    roles: tuple[str, ...]
    ranges: tuple[Range, ...]
    scheme: Scheme | None

    @property
    def name(self) -> str:
        """The name of its module in a fused matrix: "q", or "k_v" for roles stored together."""
        return "_".join(self.roles)

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True)
class RowClass:
    """The rows of a class, anywhere in the weight, stored together in ascending order. scheme: None leaves them unquantized."""

    number: int
    roles: tuple[str, ...]
    rows: int
    scheme: Scheme | None

    @property
    def name(self) -> str:
        return f"class{self.number}"


@dataclass(frozen=True)
class Selected:
    """A weight and its parts: one, or several if it is a fused matrix whose roles have different schemes, or its classes of rows.

    classes: the number of each row's class, a byte each; None for a weight without classes.
    """

    weight: Weight
    parts: tuple[Part, ...] | tuple[RowClass, ...]
    classes: bytes | None = None

    @property
    def is_quantized(self) -> bool:
        return any(part.scheme for part in self.parts)

    @property
    def class_numbers(self) -> torch.Tensor:
        """The class of each row as stored in an artifact: uint8 [rows]. Only for a weight with classes."""
        return torch.frombuffer(bytearray(self.classes), dtype=torch.uint8)

    def shape_of(self, part: Part | RowClass) -> tuple[int, ...]:
        return self.weight.shape if len(self.parts) == 1 else (part.rows, *self.weight.shape[1:])

    def rows_of(self, part: Part | RowClass) -> torch.Tensor:
        """The part's rows of the matrix, in the order in which they are stored: int64 [part.rows]."""
        if isinstance(part, RowClass):
            return (self.class_numbers == part.number).nonzero().flatten()
        return torch.cat([torch.arange(start, stop) for start, stop in part.ranges])

    def index_of(self, part: Part | RowClass) -> slice | torch.Tensor:
        """Where the part stands in the weight: everything if it is the only one, else its rows."""
        return slice(None) if len(self.parts) == 1 else self.rows_of(part)

    def name_of(self, part: Part | RowClass) -> str:
        """The part's name in messages and tables: the module's, followed by the part's if there are several."""
        return self.weight.module if len(self.parts) == 1 else f"{self.weight.module}.{part.name}"

    def tensor_of(self, part: Part | RowClass) -> str:
        """The name of the part's tensor in an artifact; where it is quantized, its tensors have names that begin so."""
        if isinstance(part, RowClass):
            return f"{self.weight.module}.weight.{part.name}"
        return f"{self.name_of(part)}.weight"


def select(inventory: Inventory, recipe: Recipe) -> list[Selected]:
    """Every weight of the model except biases, with the scheme that the recipe gives each of its parts.

    Raises Refused for a term that matches nothing, an empty selection, or a chosen weight that is not a matrix or a vector.
    """
    matched: set[str] = set()
    blocks = recipe.block_numbers
    if blocks and blocks - inventory.blocks:
        raise Refused(f"blocks names {', '.join(map(str, sorted(blocks - inventory.blocks)))}; the model's blocks are 0 to "
                      f"{max(inventory.blocks, default=-1)}")
    found = []
    for weight in inventory.weights:
        if weight.is_bias:
            continue
        schemes: dict[str, Scheme | None] = {}
        for role in weight.roles:
            roles = {role, "head"} if weight.tied_head else {role}
            included = _matches(recipe.include, weight.name_of(role), roles, matched)
            excluded = _matches(recipe.exclude, weight.name_of(role), roles, matched)
            is_chosen = included and not excluded and (blocks is None or weight.block in blocks)
            schemes[role] = recipe.scheme_for(roles) if is_chosen else None
        selected = Selected(weight, _parts(schemes, inventory.rows(weight)))
        _check_shapes(selected)
        found.append(selected)
    _check_terms(recipe, matched, found)
    return found


def with_classes(selected: Selected, classes: torch.Tensor, schemes: Sequence[Scheme | None]) -> Selected:
    """Divide the rows of a matrix into classes, each with a scheme of its own.

    classes: the class of each row, integers [rows]; schemes: of every class, None to leave its rows unquantized. Classes without
    rows are left out and the others numbered anew; if one is left, the result is a matrix without classes.
    Raises InputError for a vector, a matrix that has several parts already, or wrong classes.
    """
    weight, name = selected.weight, selected.weight.module
    if len(weight.shape) != 2 or len(selected.parts) != 1:
        found = f"of shape {list(weight.shape)} in {len(selected.parts)} parts"
        raise InputError(f"{name} is a weight {found}; classes of rows need a matrix in one part")
    if tuple(classes.shape) != weight.shape[:1] or classes.is_floating_point():
        raise InputError(f"{name} has classes {str(classes.dtype).removeprefix('torch.')} {list(classes.shape)}; expected an "
                         f"integer for each of its {weight.shape[0]} rows")
    numbers = classes.cpu().long()
    if not 0 <= int(numbers.min()) <= int(numbers.max()) < len(schemes):
        raise InputError(f"{name} has rows of classes {int(numbers.min())} to {int(numbers.max())}; expected 0 to "
                         f"{len(schemes) - 1}, the classes that have a scheme")
    held, counts = numbers.unique(return_counts=True)
    if len(held) > MOST_CLASSES:
        raise InputError(f"{name} has {len(held)} classes of rows; expected at most {MOST_CLASSES}")
    (roles,) = (part.roles for part in selected.parts)
    if len(held) == 1:
        divided = Selected(weight, (Part(roles, ((0, weight.shape[0]),), schemes[int(held[0])]),))
    else:
        parts = tuple(RowClass(number, roles, rows, schemes[before])
                      for number, (before, rows) in enumerate(zip(held.tolist(), counts.tolist(), strict=True)))
        divided = Selected(weight, parts, bytes(torch.searchsorted(held, numbers).tolist()))
    return divided


def _parts(schemes: Mapping[str, Scheme | None], ranges: Mapping[str, list[Range]]) -> tuple[Part, ...]:
    """Parts of a weight, one per distinct scheme; the rows of a part are stored together and multiplied together."""
    together: dict[Scheme | None, list[str]] = {}
    for role, scheme in schemes.items():
        together.setdefault(scheme, []).append(role)
    rows = {scheme: tuple(r for role in roles for r in ranges[role]) for scheme, roles in together.items()}
    if len(rows) == 1:  # the whole matrix, in its own order
        ((scheme, parts),) = rows.items()
        rows = {scheme: ((0, max(stop for _, stop in parts)),)}
    return tuple(Part(tuple(roles), rows[scheme], scheme) for scheme, roles in together.items())


def _matches(terms: tuple[str, ...], name: str, roles: set[str], matched: set[str]) -> bool:
    """Whether any of the terms matches the weight; adds those that match to `matched`."""
    hits = {
        term for term in terms
        if (bool(roles & set(GROUPS.get(term, (term,)))) if is_role(term) else fnmatchcase(name, term))
    }
    matched |= hits
    return bool(hits)


def _check_shapes(selected: Selected) -> None:
    for part in selected.parts:
        if part.scheme:
            try:
                layout(selected.shape_of(part), part.scheme)
            except InputError as error:
                raise Refused(f"{selected.name_of(part)}: {error}") from None


def _check_terms(recipe: Recipe, matched: set[str], found: list[Selected]) -> None:
    for term in (*recipe.include, *recipe.exclude):
        if term not in matched:
            names = ", ".join(selected.weight.module for selected in found[:3])
            raise Refused(f"{term!r} selects nothing; expected a role ({', '.join((*GROUPS, *ROLES))}) "
                          f"or a pattern of module names such as {names}")
    if not any(selected.is_quantized for selected in found):
        raise Refused("the recipe selects no weight; widen include or blocks, or narrow exclude")
