"""The section `model` of params.yaml: which model to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.config import known_keys
from quant.errors import InputError
from quant.hub.repository import is_repo_id

WITHOUT_OWNER = {  # names that the Hub itself once used without an owner
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    "distilgpt2": "distilbert/distilgpt2",
}


@dataclass(frozen=True)
class ModelSource:
    """The section `model`. source: a folder, or a Hub id (owner/name); revision: a commit, branch or tag (None: main)."""

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
        """Whether the source is a folder, rather than a Hub id. Raises InputError if it is neither."""
        self.require_valid()
        return Path(self.source).is_dir()

    def require_valid(self) -> None:
        """Raise InputError unless the source is a folder or a Hub id."""
        if Path(self.source).is_dir() or is_repo_id(self.source):
            return
        meant = WITHOUT_OWNER.get(self.source.lower())
        hint = f"did you mean {meant}?" if meant else "a Hub id names the owner too, such as openai-community/gpt2"
        raise InputError(f"model {self.source!r} is neither a folder here nor a Hub id (owner/name); {hint}")
