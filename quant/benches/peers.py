r"""Other projects' quantizers beside this project's, on the same calibration text, tokens and scorer:

    make peers                               # once: their environment
    python -m quant.benches.peers            # the model and texts of params.yaml
    python -m quant.benches.peers --model DIR --text test.txt --calibrate train.txt --line ' {} \n' hqq ours

Words select the rows whose name contains one of them. Bits are those of the quantized matrices as stored here, and as the package
itself stores them. Each row is compared with ours of the same width, token by token. Seconds are of the processor, in all
threads, and include the start of the package. Decoding is timed as in the pipeline; every row is stored as this project's own, so
its speed shows what a width and its kind of zeros cost.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Mapping
from pathlib import Path

from quant.benches.ground import Ground, add_arguments
from quant.benches.peers_study import compared, draw, print_table
from quant.benches.study import keep
from quant.command import Parser, run, whole_number
from quant.errors import InputError
from quant.outside import read_json
from quant.pipeline import parameters
from quant.speed.plan import TimingPlan
from quant.variants import Variant, variant

OURS = {"method": "calibrated", "group_size": 64, "scale_dtype": "float16", "levels": "full"}
ROWS: Mapping[str, Mapping] = {  # ours first: the others are compared with them
    "ours 4": {**OURS, "bits": 4},
    "ours 3": {**OURS, "bits": 3},
    "ours 2": {**OURS, "bits": 2, "fit": "range"},
    "llm-compressor GPTQ 4": {"package": "llmcompressor", "bits": 4},
    "llm-compressor GPTQ 3": {"package": "llmcompressor", "bits": 3},
    "llm-compressor GPTQ 2": {"package": "llmcompressor", "bits": 2},
    "llm-compressor AWQ 4": {"package": "llmcompressor", "algorithm": "awq", "bits": 4},
    "GPTQModel 4": {"package": "gptqmodel", "bits": 4, "symmetric": True},
    "hqq 4": {"package": "hqq", "bits": 4},
    "hqq 3": {"package": "hqq", "bits": 3},
    "torchao 4": {"package": "torchao", "bits": 4},
    "quanto 4": {"package": "quanto", "bits": 4, "group_size": 128},
    "auto-round 4": {"package": "auto_round", "bits": 4},
    "auto-round 3": {"package": "auto_round", "bits": 3},
    "auto-round 2": {"package": "auto_round", "bits": 2},
}


def main(arguments: list[str]) -> None:
    params = parameters()
    parser = Parser(prog="python -m quant.benches.peers", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("words", nargs="*", help="only rows whose name contains one of these")
    add_arguments(parser, params)
    parser.add_argument("--lines", type=whole_number, help="of the evaluated text, from the first (all)")
    parser.add_argument("--iterations", type=whole_number, help="of auto-round, a block (200)")
    parser.add_argument("--write", type=Path, help="a JSON file for the results, beside other models', and a figure beside it")
    given = parser.parse_args(arguments)
    chosen = {name: row for name, row in ROWS.items() if not given.words or any(word in name for word in given.words)}
    if not chosen:
        raise InputError(f"no row's name contains {' or '.join(given.words)}; they are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        print_table(_measure(Path(folder), chosen, given, params))


def _measure(folder: Path, chosen: Mapping[str, Mapping], given, params: Mapping) -> list[dict]:
    """Build, score and time every row that can run here; one that can't is left out with a line that says why.

    Results are written after each row, so that a run that was stopped keeps them.
    """
    ground, plan, out = Ground(folder, given, params, given.lines), TimingPlan.from_dict(params["benchmark"]), folder / "variant"
    rows, found, prepared = [], [], {}
    for name, row in chosen.items():
        row = {"method": "peers", **row}
        if given.iterations and row.get("package") == "auto_round":
            row["iterations"] = given.iterations
        planned = variant("row", {"calibrated": params["calibrated"], "variants": {"row": row}})
        try:
            seconds = _built(ground, planned, prepared, out, name)
        except InputError as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        rows.append({"name": name, "bits": row["bits"], "cpu_seconds": seconds, **_scored(ground, out, planned),
                     "decode": _decoding(ground, out, plan)})
        print(f"{name}: {rows[-1]['kld_mnats']:.4f} mnat, {seconds:.0f} s of the processor", flush=True)
        found = compared(rows)
        if given.write:
            about = {"ppl": ground.original["ppl"], "text": Path(given.text).name, "tokens": rows[0]["tokens"]}
            draw(keep(given.write, Path(given.model).name, {**about, "rows": found}), given.write.with_suffix(".svg"))
    if not rows:
        raise InputError("no row could run here; make peers installs the packages")
    return found


def _built(ground: Ground, planned: Variant, prepared: dict[str, Path], out: Path, name: str) -> float:
    """Write the variant to `out`; returns seconds of the processor, of this process and its children."""
    method = planned.method
    if method.name not in prepared:
        wants = method.wants(planned.values)
        prepared[method.name] = ground.prepare(method, [wants] if wants else [])
    start = _processor_seconds()
    method.build(ground.base, prepared[method.name], planned.values, out, lambda line: print(f"  {name}: {line}", flush=True))
    return _processor_seconds() - start


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _decoding(ground: Ground, out: Path, plan: TimingPlan) -> dict:
    """Speed over the base, median and mad, and whether to distrust it."""
    from quant.speed.benchmark import benchmark

    decode = benchmark(out, ground.base, ground.corpus, plan, "cpu")["timing"]["decode"]
    return {"is_noisy": decode["is_noisy"], "speedup": {key: decode["speedup"][key] for key in ("median", "mad")}}


def _scored(ground: Ground, out: Path, planned) -> dict:
    from quant.model.checkpoint import Checkpoint
    from quant.model.selection import select

    found, manifest = ground.evaluate(out), read_json(out / "manifest.json")
    before, after = Checkpoint(ground.base).inventory, Checkpoint(out).tensors
    quantized = [selected.weight for selected in select(before, planned.method.recipe(planned.values)) if selected.is_quantized]
    prefixes = tuple(f"{weight.module}." for weight in quantized)
    stored = sum(info.bytes for name, info in after.items() if name.startswith(prefixes) and not name.endswith(".bias"))
    peer = manifest.get("peer", {})
    return {
        "bits_per_weight": 8 * stored / sum(weight.count for weight in quantized),
        "whole_bits_per_weight": 8 * sum(info.bytes for info in after.values()) / before.parameters,
        "own_bits_per_weight": peer.get("own_bits_per_weight"), "package": peer.get("package"), "version": peer.get("version"),
        "algorithm": peer.get("algorithm"), "iterations": planned.values.get("iterations") if peer else None,
        "notes": peer.get("notes", []), "ppl_change_pct": found["metrics"]["ppl_change_pct"],
        "kld_mnats": found["metrics"]["kld_mnats"], "kld_interval": found["intervals"]["kld_mnats"],
        "top1_agree_pct": found["metrics"]["top1_agree_pct"], "tokens": found["protocol"]["tokens"], "blocks": found["blocks"],
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
