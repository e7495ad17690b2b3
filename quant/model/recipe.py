"""A recipe: a scheme, and the weights to quantize with it.

`include` and `exclude` take roles (q k v o up gate down embedding head norm), groups of roles (attention mlp) and
shell patterns of module names (`transformer.h.0.*`, `*`); a role selects its rows inside a fused matrix too. `blocks`
limits the selection to decoder blocks: `[0, 3-5]`. `schemes` overrides the scheme for a role or group. A tied head
shares the embedding's codes: selecting one selects both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from quant.config import NULL, either, known_keys, list_of, one_of, section, whole
from quant.errors import InputError
from quant.model.architectures import GROUPS, ROLES
from quant.outside import shown
from quant.tensor import scheme as schemes_of
from quant.tensor.scheme import Scheme


@dataclass(frozen=True)
class Recipe:
    """A row of params.yaml with the method `quant`; the module's docstring explains the fields."""

    scheme: Scheme
    include: tuple[str, ...] = ("attention", "mlp")
    exclude: tuple[str, ...] = ()
    blocks: tuple[int | str, ...] | None = None
    schemes: Mapping[str, Mapping] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping, start: Scheme) -> Recipe:
        """Read a row of params.yaml; its scheme keys override `start`. Raises InputError for an unknown key or a wrong value."""
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
            elif key in selection and not (key == "blocks" and selection[key] is None):
                raise InputError(f"recipe key {key} is {shown(selection[key])}; expected a list")
        for key in ("include", "exclude"):
            if not all(isinstance(term, str) for term in selection.get(key) or ()):
                raise InputError(f"recipe key {key} holds {shown(values[key])}; expected roles and patterns, each a text")
        schemes = selection.get("schemes", {})
        if not isinstance(schemes, Mapping) or not all(isinstance(values, Mapping) for values in schemes.values()):
            raise InputError(f"recipe key schemes is {shown(schemes)}; expected parameters by role, such as mlp: {{bits: 4}}")
        scheme = start.override({key: values[key] for key in scheme_keys & set(values)})
        recipe = cls(scheme, **known_keys(cls, selection, "recipe"))
        _ = recipe.block_numbers, [recipe.scheme_for({role}) for role in ROLES if recipe.schemes]  # raise InputError if wrong
        return recipe

    def to_dict(self) -> dict:
        """The recipe as values that JSON can hold; the inverse of `from_dict`."""
        selection = {"include": list(self.include), "exclude": list(self.exclude),
                     "blocks": None if self.blocks is None else list(self.blocks),
                     "schemes": {term: dict(values) for term, values in self.schemes.items()}}
        return self.scheme.to_dict() | selection

    def scheme_for(self, roles: set[str]) -> Scheme:
        """The scheme for a weight with these roles."""
        scheme = self.scheme
        for term, values in self.schemes.items():
            if not is_role(term):
                raise InputError(f"schemes names {term!r}; expected a role or group: {', '.join((*GROUPS, *ROLES))}")
            if roles & set(GROUPS.get(term, (term,))):
                scheme = scheme.override(dict(values))
        return scheme

    @property
    def block_numbers(self) -> set[int] | None:
        """The block numbers: [0, "3-5"] -> {0, 3, 4, 5}; None for all blocks."""
        if self.blocks is None:
            return None
        numbers: set[int] = set()
        for item in self.blocks:
            match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(item)) if type(item) in (int, str) else None
            if not match:
                raise InputError(f"blocks holds {shown(item)}; expected a number or a range such as 3-5")
            numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
        return numbers


def properties() -> dict[str, dict]:
    """JSON schema of each parameter of a recipe."""
    terms, scheme = list_of({"type": "string"}), schemes_of.properties()
    blocks = list_of(either(whole(0, 99_999), {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"}))
    by_role = {"type": "object", "propertyNames": one_of([*GROUPS, *ROLES]), "additionalProperties": section(scheme)}
    return scheme | {"include": terms, "exclude": terms, "blocks": either(blocks, NULL), "schemes": by_role}


def is_role(term: str) -> bool:
    """Whether a term is a role or a group of roles, rather than a pattern of module names."""
    return term in ROLES or term in GROUPS
