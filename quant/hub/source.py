"""The section `model` of params.yaml: which model to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.config import known_keys
from quant.errors import InputError
from quant.hub.client import is_repo_id


@dataclass(frozen=True)
class ModelSource:
    """source: a folder, or a Hub id (owner/name); revision: its commit, or a branch or tag (None: main)."""

    source: str
    revision: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping) -> ModelSource:
        return cls(**known_keys(cls, dict(values), "model"))

    def __post_init__(self) -> None:
        for key, value in (("source", self.source), ("revision", self.revision)):
            if not isinstance(value, str) and not (key == "revision" and value is None):
                raise InputError(f"model.{key} is {value!r}; expected text, in quotes if it looks like a number")

    @property
    def is_local(self) -> bool:
        """Raises InputError where it is neither a folder nor a Hub id."""
        if Path(self.source).is_dir():
            return True
        if is_repo_id(self.source):
            return False
        raise InputError(f"model {self.source!r} is no folder here and no Hub id (owner/name); give model.source one of the two")
