"""The section `data` of params.yaml: which text to measure on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quant.config import is_whole, known_keys
from quant.errors import InputError
from quant.hub.repository import is_repo_id

HUB = "hub:"


@dataclass(frozen=True)
class KnownText:
    """title: its name within a sentence; about: its origin and, where known, its length."""

    title: str
    about: str


KNOWN = {  # sources with a name
    "grammar": KnownText("text of the embedded grammar", "generated here"),
    "austen": KnownText("Jane Austen's Persuasion", "embedded; 3,556 sentences, 83,229 words; public domain"),
    "ptb": KnownText("the Penn Treebank", "3,761 lines, 82,430 words; LDC material, for measuring only"),
    "wikitext2": KnownText("WikiText-2", "from the Hub, checked by sha256; CC BY-SA"),
}


@dataclass(frozen=True)
class TextSource:
    """The section `data`. source: see params.yaml; config, split, column, revision: for a dataset of the Hub only; sentences: how
    many lines, None for all."""

    source: str
    config: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None
    sentences: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping) -> TextSource:
        return cls(**known_keys(cls, dict(values), "data"))

    def __post_init__(self) -> None:
        if self.sentences is not None and not is_whole(self.sentences):
            raise InputError(f"data.sentences is {self.sentences!r}; expected a number of lines from 1, or null for all")
        if not isinstance(self.source, str):
            raise InputError(f"data.source is {self.source!r}; expected a name, a path or {HUB}owner/name")
        for key in ("config", "split", "column", "revision"):
            value = getattr(self, key)
            if value is None:
                continue
            if not isinstance(value, str):
                raise InputError(f"data.{key} is {value!r}; expected text, in quotes if it looks like a number")
            if self.dataset is None:
                raise InputError(f"data.{key} is {value!r}, but data.source is {self.source}; it is for {HUB}owner/name only, "
                                 "set it to null")
        if self.dataset is not None and not is_repo_id(self.dataset):
            raise InputError(f"data.source is {self.source!r}; expected {HUB}owner/name, such as {HUB}Salesforce/wikitext")

    @property
    def dataset(self) -> str | None:
        """owner/name if the source is a dataset of the Hub, else None."""
        return self.source.removeprefix(HUB) if self.source.startswith(HUB) else None
