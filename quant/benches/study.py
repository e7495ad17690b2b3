"""The file in which a bench keeps what it measured, model by model; the README's tables are made of these files."""

from __future__ import annotations

from pathlib import Path

from quant.files import significant, write_json
from quant.outside import read_json


def keep(path: Path, model: str, found: dict) -> dict:
    """Write what was measured of a model to the JSON file, beside other models' results. Returns all of the file."""
    study = read_json(path) if path.is_file() else {"models": {}}
    study["models"][model] = significant(found)
    write_json(path, study)
    return study
