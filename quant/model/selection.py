"""Selection: applies a recipe to a model's inventory, which gives each part of each weight its scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quant.errors import InputError
from quant.model.architectures import GROUPS, ROLES, Range
from quant.model.inventory import Inventory, Weight
from quant.model.recipe import Recipe, is_role
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme


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
class Selected:
    """A weight and its parts: one, or several if it is a fused matrix whose roles have different schemes."""

    weight: Weight
    parts: tuple[Part, ...]

    @property
    def is_quantized(self) -> bool:
        return any(part.scheme for part in self.parts)

    def shape_of(self, part: Part) -> tuple[int, ...]:
        return self.weight.shape if len(self.parts) == 1 else (part.rows, *self.weight.shape[1:])

    def name_of(self, part: Part) -> str:
        """The name of a part's module: the weight's, followed by the roles if there are several parts."""
        return self.weight.module if len(self.parts) == 1 else f"{self.weight.module}.{part.name}"


def select(inventory: Inventory, recipe: Recipe) -> list[Selected]:
    """Every weight of the model except biases, with the scheme that the recipe gives each of its parts.

    Raises InputError for a term that matches nothing, an empty selection, or a chosen weight that is not a matrix or a vector.
    """
    matched: set[str] = set()
    blocks = recipe.block_numbers
    if blocks and blocks - inventory.blocks:
        raise InputError(f"blocks names {', '.join(map(str, sorted(blocks - inventory.blocks)))}; the model's blocks are 0 to "
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
                raise InputError(f"{selected.name_of(part)}: {error}") from None


def _check_terms(recipe: Recipe, matched: set[str], found: list[Selected]) -> None:
    for term in (*recipe.include, *recipe.exclude):
        if term not in matched:
            names = ", ".join(selected.weight.module for selected in found[:3])
            raise InputError(f"{term!r} selects nothing; expected a role ({', '.join((*GROUPS, *ROLES))}) "
                             f"or a pattern of module names such as {names}")
    if not any(selected.is_quantized for selected in found):
        raise InputError("the recipe selects no weight; widen include or blocks, or narrow exclude")
