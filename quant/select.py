"""Which weights a recipe quantizes, and how: from a checkpoint's header alone, before any work.

    python -m quant.select models/base nf4                                     # a recipe of params.yaml
    python -m quant.select models/base '{include: [attention], bits: 4}'       # or one of your own

A recipe is a scheme plus a selection. `include` and `exclude` take roles (q k v o up gate down embedding head
norm), groups of roles (attention mlp) and shell patterns of module names (`transformer.h.0.*`, `*`); a role
reaches its rows inside a fused matrix too. `blocks` narrows the selection to decoder blocks: `[0, 3-5]`.
`schemes` overrides the scheme for a role or group. A tied head shares the embedding's codes: choosing one chooses both.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from quant.model.architectures import GROUPS, ROLES, Range, architecture_of, fused_rows
from quant.model.checkpoint import Checkpoint, TensorInfo
from quant.errors import InputError
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme, known_keys


@dataclass(frozen=True)
class Recipe:
    scheme: Scheme
    include: tuple[str, ...] = ("attention", "mlp")
    exclude: tuple[str, ...] = ()
    blocks: tuple[int | str, ...] | None = None
    schemes: Mapping[str, Mapping] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping, start: Scheme) -> Recipe:
        """A row of params.yaml: keys of the scheme override `start`, the others select."""
        scheme_keys = {f.name for f in fields(Scheme)}
        selection_keys = {f.name for f in fields(cls)} - {"scheme"}
        unknown = sorted(set(values) - scheme_keys - selection_keys)
        if unknown:
            known = ", ".join(sorted(scheme_keys | selection_keys))
            raise InputError(f"unknown recipe key {', '.join(map(repr, unknown))}; known: {known}")
        selection = {key: values[key] for key in selection_keys & set(values)}
        for key in ("include", "exclude", "blocks"):
            if isinstance(selection.get(key), list | tuple):
                selection[key] = tuple(selection[key])
            elif selection.get(key) is not None:
                raise InputError(f"recipe key {key} is {selection[key]!r}; expected a list")
        scheme = start.override({key: values[key] for key in scheme_keys & set(values)})
        return cls(scheme, **known_keys(cls, selection, "recipe"))


@dataclass(frozen=True)
class Part:
    """Rows of a weight that are stored together; scheme None keeps them as they are."""

    roles: tuple[str, ...]
    ranges: tuple[Range, ...]
    scheme: Scheme | None

    @property
    def name(self) -> str:
        """Of its module in a fused matrix: "q", or "k_v" where those are stored together."""
        return "_".join(self.roles)

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True)
class Weight:
    """One weight of the model: its module, its tensor in the checkpoint, its shape [out, in], and its parts: one, or
    several where it is a fused matrix whose roles are treated differently."""

    module: str
    tensor: str
    shape: tuple[int, ...]
    transposed: bool
    tied_head: bool
    parts: tuple[Part, ...]

    @property
    def is_quantized(self) -> bool:
        return any(part.scheme for part in self.parts)

    def shape_of(self, part: Part) -> tuple[int, ...]:
        return self.shape if len(self.parts) == 1 else (part.rows, *self.shape[1:])

    def name_of(self, part: Part) -> str:
        """Name of a part's module: the weight's own, or with the roles behind it where there are several parts."""
        return self.module if len(self.parts) == 1 else f"{self.module}.{part.name}"


def plan(tensors: Mapping[str, TensorInfo], config: Mapping, recipe: Recipe) -> list[Weight]:
    """Every weight of a checkpoint with what the recipe does to it.

    Raises InputError for an unknown architecture, a term that matches nothing, an empty selection, or a group
    size that does not divide a chosen weight.
    """
    architecture = architecture_of(config)
    tied = architecture.is_tied(config)
    weights = []
    matched: set[str] = set()
    blocks = _block_numbers(recipe.blocks)
    present: set[int] = set()
    for tensor, info in tensors.items():
        full_name = architecture.full_name(tensor)
        module = full_name.removesuffix(".weight")
        roles = architecture.roles_of(module)
        if not full_name.endswith(".weight") or (tied and roles == ("head",)):
            continue
        transposed = architecture.is_transposed(module)
        shape = info.shape[::-1] if transposed else info.shape
        rows = shape[0] if len(shape) > 1 else 1
        ranges = {roles[0]: [(0, rows)]} if len(roles) == 1 else fused_rows(config, roles, rows)
        tied_head = tied and module == architecture.main_embedding
        block = architecture.block_of(module)
        present |= {block} - {None}
        schemes: dict[str, Scheme | None] = {}
        for role in roles:
            name = module if len(roles) == 1 else f"{module}.{role}"
            names = {role, "head"} if tied_head else {role}
            included = _matches(recipe.include, name, names, matched)
            excluded = _matches(recipe.exclude, name, names, matched)
            chosen = included and not excluded and (blocks is None or block in blocks)
            schemes[role] = _scheme_for(recipe, names) if chosen else None
        weight = Weight(module, tensor, tuple(shape), transposed, tied_head, _parts(schemes, ranges))
        _check_groups(weight)
        weights.append(weight)
    if blocks and blocks - present:
        raise InputError(f"blocks names {', '.join(map(str, sorted(blocks - present)))}; the model's blocks are 0 to "
                         f"{max(present, default=-1)}")
    _check_terms(recipe, matched, weights)
    return weights


def _parts(schemes: Mapping[str, Scheme | None], ranges: Mapping[str, list[Range]]) -> tuple[Part, ...]:
    """Roles of one scheme together: what is stored in one piece is multiplied in one go."""
    together: dict[Scheme | None, list[str]] = {}
    for role, scheme in schemes.items():
        together.setdefault(scheme, []).append(role)
    rows = {scheme: tuple(r for role in roles for r in ranges[role]) for scheme, roles in together.items()}
    if len(rows) == 1:  # the whole matrix, in its own order
        ((scheme, parts),) = rows.items()
        rows = {scheme: ((0, max(stop for _, stop in parts)),)}
    return tuple(Part(tuple(roles), rows[scheme], scheme) for scheme, roles in together.items())


def _matches(terms: tuple[str, ...], name: str, roles: set[str], matched: set[str]) -> bool:
    """Whether any term names the weight; notes in `matched` every term that does."""
    hits = {
        term for term in terms
        if (bool(roles & set(GROUPS.get(term, (term,)))) if _is_role(term) else fnmatchcase(name, term))
    }
    matched |= hits
    return bool(hits)


def _is_role(term: str) -> bool:
    return term in ROLES or term in GROUPS


def _scheme_for(recipe: Recipe, roles: set[str]) -> Scheme:
    scheme = recipe.scheme
    for term, values in recipe.schemes.items():
        if not _is_role(term):
            raise InputError(f"schemes names {term!r}; expected a role or group: {', '.join((*GROUPS, *ROLES))}")
        if roles & set(GROUPS.get(term, (term,))):
            scheme = scheme.override(dict(values))
    return scheme


def _block_numbers(blocks: tuple[int | str, ...] | None) -> set[int] | None:
    """[0, "3-5"] -> {0, 3, 4, 5}"""
    if blocks is None:
        return None
    numbers: set[int] = set()
    for item in blocks:
        first, _, last = str(item).partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise InputError(f"blocks holds {item!r}; expected a number or a range such as 3-5")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _check_groups(weight: Weight) -> None:
    for part in weight.parts:
        if part.scheme:
            try:
                layout(weight.shape_of(part), part.scheme)
            except InputError as error:
                raise InputError(f"{weight.name_of(part)}: {error}") from None


def _check_terms(recipe: Recipe, matched: set[str], weights: list[Weight]) -> None:
    for term in (*recipe.include, *recipe.exclude):
        if term not in matched:
            names = ", ".join(weight.module for weight in weights[:3])
            raise InputError(f"{term!r} selects nothing; expected a role ({', '.join((*GROUPS, *ROLES))}) "
                             f"or a pattern of module names such as {names}")
    if not any(weight.is_quantized for weight in weights):
        raise InputError("the recipe selects no weight at all; widen include or blocks, or narrow exclude")


def rows_of_table(weights: list[Weight], tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str, str, str, int, int]]:
    """Module, role, shape, scheme, bytes before and bytes after of every part of every weight."""
    for weight in weights:
        for part in weight.parts:
            shape = weight.shape_of(part)
            before = after = math.prod(shape) * tensors[weight.tensor].dtype.itemsize
            if part.scheme:
                after = sum(dtype.itemsize * math.prod(size) for dtype, size in layout(shape, part.scheme).values())
            role = "+".join((*part.roles, "head") if weight.tied_head else part.roles)
            yield weight.name_of(part), role, "x".join(map(str, shape)), part.scheme.label if part.scheme else "-", before, after


def main(words: list[str]) -> None:
    if len(words) != 2:
        raise InputError("expected MODEL RECIPE: a folder, and a recipe's name in params.yaml or its text in braces")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    named = {} if words[1].startswith("{") else params["recipes"]
    if words[1] not in named and named:
        raise InputError(f"no recipe {words[1]!r} in params.yaml; it has {', '.join(named)}")
    values = named[words[1]] if named else yaml.safe_load(words[1])
    checkpoint = Checkpoint(Path(words[0]))
    weights = plan(checkpoint.tensors, checkpoint.config, Recipe.from_dict(values or {}, Scheme.from_dict(params["quant"])))
    rows = list(rows_of_table(weights, checkpoint.tensors))
    total = ("total", "", "", "", sum(row[4] for row in rows), sum(row[5] for row in rows))
    cells = [("module", "role", "shape", "scheme", "bytes before", "bytes after")]
    cells += [(*row[:4], f"{row[4]:,}", f"{row[5]:,}") for row in (*rows, total)]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    for row in cells:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True))
        print(left + "  " + "  ".join(cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
