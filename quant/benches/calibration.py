"""What calibration is worth: divergence of calibrated rows, and of each of their steps, on a model and a text of your choice:

    python -m quant.benches.calibration                          # the model and texts of params.yaml
    python -m quant.benches.calibration --model DIR --text test.txt --calibrate train.txt --line ' {} \n' mix cal-int3

Words select the rows whose name contains one of them. Bits are those of the quantized weights, or of all weights under a budget.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from quant.benches.ground import Ground, add_arguments
from quant.command import Parser, run
from quant.errors import InputError
from quant.pipeline import parameters
from quant.variants import variant

LINEARS = {"include": ["attention", "mlp"], "group_size": 64, "scale_dtype": "float16"}
INT3 = {**LINEARS, "bits": 3, "levels": "full", "fit": "mse"}
NEAREST = {"rounding": "nearest", "targets": "original"}
ALL = {"include": ["*"], "exclude": ["norm"], "scale_dtype": "int8"}
ROWS: Mapping[str, Mapping] = {
    "nf4 nearest": {**LINEARS, "codebook": "nf4", "bits": 4, "fit": "mse", **NEAREST, "importance": False},
    "cal-nf4": {**LINEARS, "codebook": "nf4", "bits": 4, "fit": "mse"},
    "cal-int4": {**INT3, "bits": 4, "scale_dtype": "int8"},
    "int3 nearest": {**INT3, **NEAREST, "importance": False},
    "int3 importance": {**INT3, **NEAREST},
    "int3 equalized": {**INT3, **NEAREST, "importance": False, "equalize": True},
    "int3 feedback": {**INT3, "targets": "original", "refits": 0, "sweeps": 0},
    "int3 feedback, corrected": {**INT3, "refits": 0, "sweeps": 0},
    "cal-int3": INT3,
    "int2 nearest": {**INT3, "bits": 2, **NEAREST, "importance": False},
    "cal-int2": {**INT3, "bits": 2, "fit": "range"},
    **{f"mix{budget:g}": {**ALL, "budget": budget} for budget in (5.0, 4.0, 3.0, 2.5)},
}


def main(arguments: list[str]) -> None:
    params = parameters()
    parser = Parser(prog="python -m quant.benches.calibration", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("words", nargs="*", help="only rows whose name contains one of these")
    add_arguments(parser, params)
    given = parser.parse_args(arguments)
    chosen = {name: row for name, row in ROWS.items() if not given.words or any(word in name for word in given.words)}
    if not chosen:
        raise InputError(f"no row's name contains {' or '.join(given.words)}; they are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), chosen, given, params)


def _measure(folder: Path, chosen: Mapping[str, Mapping], given, params: Mapping) -> None:
    ground = Ground(folder, given, params)
    planned = {name: variant("row", {"calibrated": params["calibrated"], "variants": {"row": {"method": "calibrated", **row}}})
               for name, row in chosen.items()}
    method = next(iter(planned.values())).method
    wants = []
    for row in planned.values():
        want = method.wants(row.values)
        wants += [] if want in wants else [want]
    prepared = ground.prepare(method, wants)
    print(f"perplexity of the base {ground.original['ppl']:.4f}")
    print(f"{'row':26} {'bits/weight':>11} {'ppl change %':>12} {'KLD mnat':>9} {'95 % interval':>19} {'top-1 %':>8} "
          f"{'predicted':>9} {'s':>6}")
    for name, row in planned.items():
        start, out = time.perf_counter(), folder / "variant"
        method.build(ground.base, prepared, row.values, out, lambda _: None)
        seconds = time.perf_counter() - start
        found = ground.evaluate(out)
        metrics, interval, predicted = found["metrics"], found["intervals"]["kld_mnats"], _predicted(out)
        bits = _bits(ground.base, out, row.values)
        print(f"{name:26} {bits:11.3f} {metrics['ppl_change_pct']:12.4f} {metrics['kld_mnats']:9.4f} {interval[0]:9.4f} "
              f"{interval[1]:9.4f} {metrics['top1_agree_pct']:8.3f} {predicted:>9} {seconds:6.1f}", flush=True)


def _predicted(out: Path) -> str:
    from quant.outside import read_json

    allocation = read_json(out / "manifest.json").get("allocation")
    return f"{allocation['predicted_kld_mnats']:.4f}" if allocation else ""


def _bits(base: Path, out: Path, values: Mapping) -> float:
    """Stored bits a weight: of all weights under a budget, else of the quantized ones."""
    from quant.model.checkpoint import Checkpoint

    before, after = Checkpoint(base), Checkpoint(out)
    stored, kept = before.inventory.weights, set(after.tensors)
    if values["budget"] is not None:
        return 8 * sum(info.bytes for info in after.tensors.values()) / before.inventory.parameters
    quantized = [weight for weight in stored if weight.name not in kept]
    unchanged = {weight.name for weight in stored}
    codes = sum(8 * info.dtype.itemsize * math.prod(info.shape) for name, info in after.tensors.items() if name not in unchanged)
    return codes / sum(weight.count for weight in quantized)


if __name__ == "__main__":
    run(main)
