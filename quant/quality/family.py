"""Measures another model, a relative of the base, on the same text: as it was found, and quantized by some recipes.

Relatives have tokenizers of their own, so they compare in bits per byte, block by block (quant.quality.bootstrap). The question
that they answer: which model at which width is best for a given memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quant.errors import InputError
from quant.files import significant
from quant.hub.family import UNQUANTIZED
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.model.selection import select
from quant.outside import read_json
from quant.progress import MIB
from quant.quality.evaluate import evaluate, evaluate_base
from quant.quality.protocol import ScoringProtocol
from quant.text.corpus import Corpus


def measure_relative(folder: Path, recipes: Mapping[str, Recipe], corpus: Corpus, protocol: ScoringProtocol, device: str) -> dict:
    """Quality and size of the model that `fetch_model` put into `folder`, and of what each recipe makes of it, for JSON.

    All are computed in float32. A recipe that does not fit the model has a row with the reason.
    """
    inventory, rows = Checkpoint(folder).inventory, []
    with _temporary_folder(beside=folder) as scratch:
        reference, artifact = scratch / "reference", scratch / "artifact"
        base = evaluate_base(folder, corpus, protocol, device, reference)
        rows.append(_row(UNQUANTIZED, base, inventory.stored_bytes))
        for name, recipe in recipes.items():
            try:
                select(inventory, recipe)
            except InputError as error:
                rows.append({"variant": name, "refused": str(error)})
                continue
            write_artifact(folder, recipe, artifact)  # in place of the one before
            found = evaluate(artifact, folder, corpus, protocol, device, reference)
            rows.append(_row(name, found, sum(found["held_bytes"].values())))
    manifest = read_json(folder / "manifest.json")
    about = {key: manifest[key] for key in ("source", "revision", "architecture")}
    return {**about, "parameters": inventory.parameters, "protocol": base["protocol"], "rows": rows}


@contextmanager
def _temporary_folder(beside: Path) -> Iterator[Path]:
    """An empty folder on the same disk as the model, which has room for it; removes what a killed run left there."""
    folder = beside.with_name(f".{beside.name}.scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(variant: str, found: Mapping, weights: int) -> dict:
    """weights: bytes; of the unquantized model as it is stored, usually in 16 bits, else as held in memory."""
    metrics = found["metrics"]
    sizes = significant({"weights_mib": weights / MIB, "bits_per_weight": 8 * weights / found["parameters"]})
    return {
        "variant": variant, **sizes,
        "bits_per_byte": metrics["bits_per_byte"], "interval": found["intervals"]["bits_per_byte"],
        "ppl": metrics["ppl"], "kld_mnats": metrics["kld_mnats"], "blocks": found["blocks"],
    }  # fmt: skip
