"""Refusals: rows that can't be made or run for this model, or on this machine. Such a row stands in the report with its reason.

In place of a variant its folder holds `refused.json`, and so do, under the key `refused`, its results; all that depends on them
still has something to stand on, and DVC makes the row again as soon as a parameter or the code changes. What a refusal depends on
beside that, such as the processor, is kept with it: see quant.retry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from quant.errors import InputError, Refused
from quant.files import atomic_folder, write_json
from quant.outside import read_json, shown

FILE = "refused.json"


@dataclass(frozen=True)
class Refusal:
    """stage: where it showed. reason: one line. here: what it depends on that DVC does not track, by name; see Method.here."""

    stage: str
    reason: str
    here: Mapping = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values) -> Refusal:
        """Read `to_dict`'s result. Raises InputError for anything else."""
        if not isinstance(values, dict) or set(values) != {"stage", "reason", "here"}:
            raise InputError(f"a refusal is {shown(values)}; expected a stage, a reason and here; run dvc repro to make it again")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)


def write_refusal(folder: Path, refusal: Refusal) -> None:
    """Put a refusal in the place of what `folder` would hold."""
    with atomic_folder(folder) as partial:
        write_json(partial / FILE, refusal.to_dict())


def read_refusal(folder: Path) -> Refusal | None:
    """The refusal that stands in the place of a folder's content; None where there is none."""
    path = Path(folder) / FILE
    return Refusal.from_dict(read_json(path)) if path.is_file() else None


def require_made(folder: Path) -> None:
    """Raise Refused, with the reason, where a folder holds a refusal."""
    refusal = read_refusal(folder)
    if refusal:
        raise Refused(refusal.reason)


def without_result(variant: str, refusal: Refusal) -> dict:
    """What a stage that measures writes for a refused variant."""
    return {"variant": variant, "metrics": {}, "refused": refusal.to_dict()}
