"""The licence of a model, read from its card, and what it says about sharing a quantized copy."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from quant.errors import InputError, printable
from quant.outside import MIB, parse_yaml, read_bytes, shown

LARGEST_CARD, LONGEST = 4 * MIB, 200
OPEN = {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0",
        "cc-by-sa-3.0", "unlicense", "wtfpl", "zlib", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "odc-by"}


def shown_text(value) -> str:
    """A value of the front matter as a short line; only text and numbers are a licence."""
    return printable(value, LONGEST) if isinstance(value, str) else shown(value, LONGEST)


@dataclass(frozen=True)
class License:
    """id: the Hub's name of it ("mit", "llama3", "other"); name, link: given for "other" only. None: the card states none."""

    id: str | None = None
    name: str | None = None
    link: str | None = None

    @classmethod
    def from_card(cls, card: Path) -> License:
        """Read the front matter of a README.md; a missing file or front matter gives a licence without an id."""
        text = read_bytes(card, LARGEST_CARD).decode("utf-8", errors="replace") if card.exists() else ""
        head = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\n---[ \t]*\r?(\n|$)", text, re.DOTALL)
        try:
            values = parse_yaml(head[1], str(card)) if head else {}
        except InputError:  # a card that can't be read states no licence
            values = {}
        if not isinstance(values, dict):
            return cls()
        found = values.get("license")
        found = ", ".join(map(shown_text, found[:8])) if isinstance(found, list) else found
        fields = (found, values.get("license_name"), values.get("license_link"))
        return cls(*(None if one is None else shown_text(one) for one in fields))

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def label(self) -> str:
        return (self.name or self.id) if self.id == "other" else self.id or "not stated"

    @property
    def warning(self) -> str | None:
        """A warning if the licence forbids or restricts sharing a modified copy, such as a quantized one; None if in OPEN."""
        if self.id is None:
            return ("the base model's card states no licence; without one its author keeps all rights, and sharing a "
                    "quantized copy needs their permission")
        if re.search(r"-nd\b", self.id):
            return f"the base model's licence, {self.label}, does not allow sharing modified copies, and a quantized model is one"
        if re.search(r"-nc\b", self.id):
            return f"the base model's licence, {self.label}, allows non-commercial use only, of this copy too"
        if self.id not in OPEN:
            return (f"the base model's licence, {self.label}, has its own terms for sharing (such as a notice, a copy of the "
                    "licence or a name); read them first")
        return None
