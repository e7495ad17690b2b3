"""The section `family` of params.yaml: other models, measured on the same text as the base, whole and under some of its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from quant.config import known_keys
from quant.errors import InputError
from quant.hub.source import ModelSource

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
UNQUANTIZED = "unquantized"  # in results, a relative as it was found


@dataclass(frozen=True)
class Family:
    """variants: rows of the section `variants`, applied to every model. models: name -> where the model, a relative, is."""

    variants: tuple[str, ...] = ()
    models: Mapping[str, ModelSource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.variants, list | tuple) or not all(isinstance(name, str) for name in self.variants):
            raise InputError(f"family.variants is {self.variants!r}; expected names of rows, such as [rtn8, rtn4]")
        if len(set(self.variants)) != len(self.variants) or UNQUANTIZED in self.variants:
            raise InputError(f"family.variants is {list(self.variants)}; expected every name once, and none {UNQUANTIZED}, which "
                             "is the model as it was found")
        if not isinstance(self.models, Mapping):
            raise InputError(f"family.models is {self.models!r}; expected models such as small: {{source: owner/name}}")
        object.__setattr__(self, "variants", tuple(self.variants))
        object.__setattr__(self, "models", {name: _model(name, values) for name, values in self.models.items()})

    @classmethod
    def from_dict(cls, values: Mapping) -> Family:
        """Read the section. Raises InputError for an unknown key, a wrong name or a wrong source."""
        return cls(**known_keys(cls, values, "family"))

    def source_of(self, name: str) -> ModelSource:
        """Where the model called `name` is. Raises InputError for an unknown name."""
        if name not in self.models:
            raise InputError(f"model {name!r} is not in family.models; it has {', '.join(self.models) or 'none'}")
        return self.models[name]


def _model(name: str, values: Mapping | ModelSource) -> ModelSource:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"a model of the family can't be called {name!r}; expected letters, digits, dots, hyphens and "
                         "underscores, in quotes if it looks like a number")
    if isinstance(values, ModelSource):
        return values
    if not isinstance(values, Mapping) or "source" not in values:
        raise InputError(f"family.models.{name} is {values!r}; expected {{source: a folder or a Hub id, revision: null}}")
    try:
        return ModelSource.from_dict(values)
    except InputError as error:
        raise InputError(f"family.models.{name}: {error}") from None
