r"""Other projects' quantizers beside this project's, on the same calibration text, tokens and scorer:

    make peers                               # once: their environment
    python -m quant.benches.peers            # the model and texts of params.yaml
    python -m quant.benches.peers --model DIR --text test.txt --calibrate train.txt --line ' {} \n' hqq ours

Words select the rows whose name contains one of them. Bits are those of the quantized matrices as stored here, and as the package
itself stores them. Each row is compared with ours of the same width, token by token. Seconds are of the processor, in all
threads, and include the start of the package. At the end all rows decode in turn with the base; every row is stored as this
project's own, so this shows what a width and its kind of zeros cost. With --keep FOLDER, a run that was stopped goes on where it
was, and a later one only decodes; delete the folder after a change of the code.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Mapping
from pathlib import Path

from quant.benches.ground import Ground, add_arguments
from quant.benches.peers_study import compared, keep, print_table
from quant.command import Parser, run, whole_number
from quant.errors import InputError
from quant.files import significant, write_json
from quant.outside import read_json
from quant.pipeline import parameters
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
PROMPT, TOKENS, ROUNDS = 32, 48, 7  # of decoding


def main(arguments: list[str]) -> None:
    params = parameters()
    parser = Parser(prog="python -m quant.benches.peers", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("words", nargs="*", help="only rows whose name contains one of these")
    add_arguments(parser, params)
    parser.add_argument("--lines", type=whole_number, help="of the evaluated text, from the first (all)")
    parser.add_argument("--iterations", type=whole_number, help="of auto-round, a block (200)")
    parser.add_argument("--write", type=Path, help="a JSON file that keeps the results, beside those of other models")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the variants (a temporary one)")
    given = parser.parse_args(arguments)
    chosen = {name: row for name, row in ROWS.items() if not given.words or any(word in name for word in given.words)}
    if not chosen:
        raise InputError(f"no row's name contains {' or '.join(given.words)}; they are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        print_table(compared(_measure(Path(folder), chosen, given, params)["rows"]))


def _measure(folder: Path, chosen: Mapping[str, Mapping], given, params: Mapping) -> dict:
    """Build, score and time every row that can run here; one that can't is left out with a line that says why."""
    ground = Ground(folder, given, params, given.lines)
    kept = given.keep / Path(given.model).name if given.keep else folder / "variants"
    kept.mkdir(parents=True, exist_ok=True)
    rows, prepared = {}, {}
    for name, row in chosen.items():
        row = {"method": "peers", **row}
        if given.iterations and row.get("package") == "auto_round":
            row["iterations"] = given.iterations
        planned = variant("row", {"calibrated": params["calibrated"], "variants": {"row": row}})
        out = kept / name.replace(" ", "-")
        record, asked = out.with_suffix(".json"), {**planned.values, "calibrate": given.calibrate, "lines": given.lines}
        held = read_json(record) if record.is_file() else {}
        if held.get("asked") == asked:
            rows[name] = held["row"]
            print(f"{name}: as before", flush=True)
            continue
        try:
            seconds = _built(ground, planned, prepared, out, name)
        except InputError as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        rows[name] = {"name": name, "bits": row["bits"], "cpu_seconds": seconds, **_scored(ground, out, planned)}
        write_json(record, {"asked": asked, "row": rows[name]})
        print(f"{name}: {rows[name]['kld_mnats']:.4f} mnat, {seconds:.0f} s of the processor", flush=True)
    if not rows:
        raise InputError("no row could run here; make peers installs the packages")
    timed, is_quiet = _timed(ground, {name: kept / name.replace(" ", "-") for name in rows})
    found = {"ppl": ground.original["ppl"], "text": Path(given.text).name, "tokens": next(iter(rows.values()))["tokens"],
             "rows": [{**row, "decode": timed[name], "is_quiet": is_quiet} for name, row in rows.items()]}
    if given.write:
        keep(given.write, Path(given.model).name, found, list(ROWS))
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


def _timed(ground: Ground, variants: Mapping[str, Path]) -> tuple[dict[str, dict], bool]:
    """Decode with the base and all variants in turn. Returns by row ms a token and speed over the base, each a spread of the
    samples without the samples; and whether the machine was quiet."""
    from quant.quality.windows import tokenize
    from quant.runners import open_runner
    from quant.speed.latency import measure
    from quant.speed.plan import TimingPlan
    from quant.speed.samples import ratios_of_pairs, spread
    from quant.speed.watch import watch_machine

    watch = watch_machine(TimingPlan.threads, 0)
    ids = tokenize(ground.corpus, ground.base, ground.protocol).ids[:PROMPT]
    folders = {"base": ground.base, **variants}
    runners = {name: open_runner(folder, None, "cpu", TimingPlan.threads, PROMPT + TOKENS) for name, folder in folders.items()}
    ms = measure(runners, {"prefill": ids}, TOKENS, ROUNDS).ms["decode"]
    found = {name: {"ms": spread(ms[name]), "speedup": spread(ratios_of_pairs(ms["base"], ms[name]))} for name in variants}
    shown = {name: {key: {part: values[part] for part in ("median", "mad")} for key, values in of.items()}
             for name, of in found.items()}
    return significant(shown), watch.still_quiet()


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
