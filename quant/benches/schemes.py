"""Every scheme worth comparing, on the model and text at hand: python -m quant.benches.schemes [WORD ...]

Needs `dvc repro evaluate-base` before it. Each row is quantized into a temporary folder, opened, scored as the pipeline
scores its variants, and forgotten. With words, only rows that hold one of them: `python -m quant.benches.schemes int4 bnb`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from quant.tensor import ggml
from quant.model.artifact import write_artifact
from quant.command import project_params, run
from quant.text.corpus import load_corpus
from quant.errors import InputError
from quant.quality.evaluate import evaluate
from quant.quality.windows import Protocol
from quant.methods.bitsandbytes import build as bitsandbytes
from quant.tensor.scheme import Scheme
from quant.select import Recipe
from quant.variants import BASE, Variant

GROUPED = {"group_size": 64}
FOUR = {"bits": 4, **GROUPED}
ROLES = ("q", "k", "v", "o", "up", "gate", "down", "embedding")


def rows() -> Iterator[tuple[str, dict]]:
    """Name and recipe, or name and the arguments of bitsandbytes."""
    yield from ((f"int8 {size}", {"group_size": size}) for size in ("tensor", "row", 64))
    for codebook in ("linear", "nf4", "fp4"):
        name = "int4" if codebook == "linear" else codebook
        for extra in ({}, {"double_quant": True}, {"fit": "mse"}, {"fit": "mse", "double_quant": True}):
            words = [name, "g64", "dq" if "double_quant" in extra else "", extra.get("fit", "")]
            yield " ".join(filter(None, words)), {**FOUR, "codebook": codebook, **extra}
    for bits in (4, 3, 2):
        for fit in ("range", "mse", "hqq"):
            yield f"int{bits} g64 asym {fit}", {**GROUPED, "bits": bits, "symmetric": False, "fit": fit}
        if bits < 4:
            for fit in ("range", "mse"):
                yield f"int{bits} g64 {fit}", {**GROUPED, "bits": bits, "fit": fit}
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        yield f"ggml {name}", ggml.scheme_of(name).to_dict()
    for role in ROLES:
        yield f"{role} alone int8 row", {"include": [role]}
        yield f"{role} alone int4 g64", {"include": [role], **FOUR}
    for kind, double in (("int8", False), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)):
        yield f"bnb {kind}{' dq' if double else ''}", {"type": kind, "double_quant": double}


def main(words: list[str]) -> None:
    protocol = Protocol.from_dict(project_params()["evaluate"])
    chosen = [(name, values) for name, values in rows() if not words or any(word in name for word in words)]
    if not chosen:
        raise InputError(f"no scheme's name holds {' or '.join(words)}; they are {', '.join(name for name, _ in rows())}")
    corpus = load_corpus(Path("data/eval"))
    print(f"{'scheme':24} {'bits/weight':>11} {'ppl':>9} {'change %':>9} {'95 % interval':>19} {'KLD mnat':>9} {'top-1 %':>8}")
    for name, values in chosen:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "artifact"
            family = "bnb" if "type" in values else "scratch"
            try:
                if family == "bnb":
                    bitsandbytes.build(BASE, bitsandbytes.Spec.from_dict(values), out)
                else:
                    write_artifact(BASE, Recipe.from_dict(values, Scheme()), out)
            except InputError as error:
                print(f"{name:24} left out: {error}")
                continue
            found = evaluate(Variant(name, family, out), corpus, protocol, "cpu")
        metrics, interval = found["metrics"], found["intervals"]["ppl_change_pct"]
        print(f"{name:24} {metrics['bits_per_weight']:11.3f} {metrics['ppl']:9.4f} {metrics['ppl_change_pct']:9.4f} "
              f"{interval[0]:9.4f} {interval[1]:9.4f} {metrics['kld_mnats']:9.4f} {metrics['top1_agree_pct']:8.3f}", flush=True)


if __name__ == "__main__":
    run(main)
