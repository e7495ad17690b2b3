"""Quality of many schemes on the pipeline's model and text: python -m quant.benches.schemes [WORD ...]

Run `dvc repro evaluate-base` first. Each row is quantized into a temporary folder and scored as the pipeline scores its
variants. Words select the rows whose name contains one of them: `python -m quant.benches.schemes int4 bnb`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from quant.command import Parser, run
from quant.errors import InputError
from quant.methods import FROM_SCRATCH
from quant.pipeline import BASE, PREPARED, PRIVATE, REFERENCE, TEXT, parameters
from quant.quality.protocol import ScoringProtocol
from quant.text.load import load_corpus
from quant.variants import variant

GROUPED = {"group_size": 64}
FOUR = {"bits": 4, **GROUPED}
ROLES = ("q", "k", "v", "o", "up", "gate", "down", "embedding")


def rows() -> Iterator[tuple[str, dict]]:
    """(name, row as in params.yaml) of every scheme; a row without a method is quantized from scratch."""
    from quant.tensor import ggml  # here and in main: so that --help answers before torch is imported

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
        yield f"bnb {kind}{' dq' if double else ''}", {"method": "bitsandbytes", "type": kind, "double_quant": double}


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.schemes", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("words", nargs="*", help="only rows whose name contains one of these")
    words = parser.parse_args(arguments).words
    from quant.quality.evaluate import evaluate

    protocol = ScoringProtocol.from_dict(parameters()["evaluate"])
    chosen = [(name, row) for name, row in rows() if not words or any(word in name for word in words)]
    if not chosen:
        raise InputError(f"no scheme's name contains {' or '.join(words)}; they are {', '.join(name for name, _ in rows())}")
    corpus = load_corpus(TEXT, PRIVATE)
    print(f"{'scheme':24} {'bits/weight':>11} {'ppl':>9} {'change %':>9} {'95 % interval':>19} {'KLD mnat':>9} {'top-1 %':>8}")
    for name, row in chosen:
        planned = variant("row", {"variants": {"row": {"method": FROM_SCRATCH, **row}}})
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "artifact"
            try:
                planned.method.build(BASE, PREPARED / planned.method.name, planned.values, out, lambda _: None)
            except InputError as error:
                print(f"{name:24} left out: {error}")
                continue
            found = evaluate(out, BASE, corpus, protocol, "cpu", REFERENCE)
        metrics, interval = found["metrics"], found["intervals"]["ppl_change_pct"]
        print(f"{name:24} {metrics['bits_per_weight']:11.3f} {metrics['ppl']:9.4f} {metrics['ppl_change_pct']:9.4f} "
              f"{interval[0]:9.4f} {interval[1]:9.4f} {metrics['kld_mnats']:9.4f} {metrics['top1_agree_pct']:8.3f}", flush=True)


if __name__ == "__main__":
    run(main)
