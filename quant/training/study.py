"""Where rounding ends and training begins: one model at few bits a weight, rounded to nearest, and trained with rounded weights.

All are measured as the pipeline measures variants: artifacts with packed codes, the same scorer, divergence from the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from quant.files import significant
from quant.model.artifact import write_artifact
from quant.model.checkpoint import Checkpoint
from quant.model.recipe import Recipe
from quant.quality import bootstrap
from quant.quality.bootstrap import Blocks, difference
from quant.quality.evaluate import evaluate, evaluate_base
from quant.quality.protocol import ScoringProtocol
from quant.tensor.qtensor import layout
from quant.tensor.scheme import Scheme
from quant.text.corpus import Corpus

NEAREST, TRAINED = "nearest", "trained"
METRICS = ("ppl", "ppl_change_pct", "kld_mnats", "top1_agree_pct")
INTERVALS = ("ppl_change_pct", "kld_mnats")
DEVICE = "cpu"


def measure_trained(base: Path, schemes: Mapping[str, Scheme], trained: Mapping[str, Path], corpus: Corpus,
                    protocol: ScoringProtocol, scratch: Path) -> dict:
    """Quality of every scheme by rounding the base to nearest and, where `trained` has a checkpoint, after training, for JSON.

    Both quantize the decoder blocks' matrices. scratch: a folder for artifacts and the base's predictions.
    Each trained row has its divergence minus that of each rounded row, with the interval of pairs over blocks of text.
    """
    reference, rows, blocks = scratch / "reference", [], {}
    found = evaluate_base(base, corpus, protocol, DEVICE, reference)
    for name, scheme in schemes.items():
        for way, folder in ((NEAREST, base), (TRAINED, trained.get(name))):
            if folder is None:
                continue
            artifact = scratch / f"{name}-{way}"
            write_artifact(folder, Recipe(scheme), artifact)
            measured = evaluate(artifact, base, corpus, protocol, DEVICE, reference)
            blocks[name, way] = Blocks.from_dict(measured["blocks"])
            rows.append({
                "scheme": name, "way": way, "stored_as": scheme.label, **bits_of(scheme),
                **{key: measured["metrics"][key] for key in METRICS},
                "intervals": {key: measured["intervals"][key] for key in INTERVALS},
            })  # fmt: skip
    for row in rows:
        if row["way"] == TRAINED:
            pairs = {name: difference(blocks[row["scheme"], TRAINED], blocks[name, NEAREST], "kld") for name in schemes}
            row["kld_mnats_minus_nearest"] = {name: [pair.value, pair.low, pair.high] for name, pair in pairs.items()}
    inventory = Checkpoint(base).inventory
    return significant({
        "parameters": inventory.parameters,
        "quantized_weights": sum(weight.count for weight in inventory.weights if weight.is_block_matrix),
        "base": {"ppl": found["metrics"]["ppl"]},
        "protocol": found["protocol"],
        "intervals": {"level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES, "seed": bootstrap.SEED},
        "rows": rows,
    })


def bits_of(scheme: Scheme) -> dict[str, float]:
    """Bits a weight of a matrix in groups. bits_per_weight: codes and scales as packed; least_bits_per_weight: with log2(levels)
    bits a code, which no coding of levels that are equally frequent can go below."""
    stored = {name: dtype.itemsize * 8 * math.prod(shape) / scheme.group_size
              for name, (dtype, shape) in layout((1, scheme.group_size), scheme).items()}
    levels = 2**scheme.bits - scheme.symmetric if scheme.is_linear else len(scheme.codebook)
    packed = sum(stored.values())
    return {"levels": levels, "bits_per_weight": packed,
            "least_bits_per_weight": packed - stored["codes"] + math.log2(levels)}
