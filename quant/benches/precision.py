"""What another precision of products adds to the divergence (quant.kernels.precision), on the text of params.yaml:

    python -m quant.benches.precision                     # of the default variants, in every precision of this processor
    python -m quant.benches.precision models/nf4 --windows 100
    python -m quant.benches.precision --write reports/precision.json       # for the README's table

Each window is a prompt. Divergence is measured from the base, and from the same weights multiplied exactly. It takes minutes, and
needs a run of `dvc repro` before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from quant.command import Parser, run, whole_number
from quant.errors import InputError
from quant.files import significant, write_json
from quant.outside import read_json
from quant.pipeline import BASE, MODELS, PRIVATE, TEXT, parameters

VARIANTS = ("whole", "nf4", "int4", "mix4")


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.precision", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("folders", nargs="*", type=Path, help=f"variants of this project (models/{', models/'.join(VARIANTS)})")
    parser.add_argument("--windows", type=whole_number, help="of the text, from the first (all)")
    parser.add_argument("--write", type=Path, help="a JSON file for the results")
    given = parser.parse_args(arguments)
    params = parameters()
    folders = given.folders or [MODELS / name for name in VARIANTS]
    for folder in folders:
        _check(folder)
    import quant.kernels.precision  # noqa: F401  refuses a wrong choice of the environment before any work

    results = []
    print(f"{'variant':12} {'products':9} {'ppl':>9} {'KLD mnat':>9} {'from exact':>10}")
    for folder in folders:
        for row in measured(folder, BASE, params, given.windows):
            print(f"{folder.name:12} {row['precision']:9} {row['ppl']:9.4f} {row['kld_mnats']:9.4f} "
                  f"{row['from_exact_mnats']:10.4f}", flush=True)
            results.append({"variant": folder.name, **row})
    if given.write:
        write_json(given.write, significant({"windows": given.windows, "rows": results}))


def _check(folder: Path) -> None:
    """Raise InputError for a folder without an artifact of this project: nothing else is multiplied in another precision."""
    from quant.model.artifact_format import METHOD

    path = folder / "config.json"
    found = read_json(path).get("quantization_config", {}) if path.is_file() else {}
    if found.get("quant_method") != METHOD:
        raise InputError(f"{folder} holds no variant quantized by this project, and precision concerns no other; run `dvc repro` "
                         f"first, or name one, such as {MODELS / VARIANTS[0]}")


def measured(folder: Path, base: Path, params: Mapping, most_windows: int | None) -> Iterator[dict]:
    """For each precision that this processor has: perplexity, the divergence from the base, and that from exact products."""
    import numpy

    from quant.kernels import precision
    from quant.quality.protocol import ScoringProtocol
    from quant.quality.score import ModelPredictions, score
    from quant.quality.windows import tokenize
    from quant.runners import open_runner
    from quant.tensor.products import cpuinfo
    from quant.text.load import load_corpus

    protocol = ScoringProtocol.from_dict(params["evaluate"])
    tokens = tokenize(load_corpus(TEXT, PRIVATE), base, protocol)
    original, variant = (ModelPredictions(open_runner(path)) for path in (base, folder))
    possible = {"exact": True, "bfloat16": precision.multiplies_bfloat16(cpuinfo()), "int8": precision.HAS_INT8}
    for choice in (name for name, is_possible in possible.items() if is_possible):
        rounded = _In(variant, choice)
        scores = score(rounded, original, tokens, protocol, most_windows)
        from_exact = score(rounded, variant, tokens, protocol, most_windows)
        yield {"precision": choice, "ppl": float(numpy.exp(scores.nll.mean(dtype=float))),
               "kld_mnats": 1000 * float(scores.kld.mean(dtype=float)),
               "from_exact_mnats": 1000 * float(from_exact.kld.mean(dtype=float))}


class _In:
    """A model's predictions in some precision. Scoring itself is always exact."""

    def __init__(self, exact, choice: str):
        self.vocabulary, self.context, self.is_thread_safe = exact.vocabulary, exact.context, exact.is_thread_safe
        self._model, self._choice = exact.runner.model, choice

    def rows(self, batch):
        import torch

        from quant.kernels import precision

        with torch.inference_mode(), precision.using(self._choice):
            return self._model(batch.inputs, use_cache=False).logits[:, -batch.scored :].flatten(0, 1).float()


if __name__ == "__main__":
    run(main)
