r"""Other projects' quantizers beside this project's, on the same calibration text, tokens and scorer:

    make peers                               # once: their environment
    python -m quant.benches.peers            # the model and texts of params.yaml
    python -m quant.benches.peers --model DIR --text test.txt --calibrate train.txt --line ' {} \n' hqq ours

Words select the rows whose name contains one of them. Bits are those of the quantized matrices as stored here, and as the package
itself stores them. Each row is compared with ours of the same width, token by token. Seconds include the start of the package.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from quant.benches.ground import Ground, add_arguments
from quant.command import Parser, run, whole_number
from quant.errors import InputError
from quant.files import significant, write_json
from quant.outside import read_json
from quant.pipeline import parameters
from quant.variants import variant

OURS = {"method": "calibrated", "group_size": 64, "scale_dtype": "float16", "levels": "full"}
ROWS: Mapping[str, Mapping] = {  # ours first: the others are compared with them
    "ours 4": {**OURS, "bits": 4},
    "ours 3": {**OURS, "bits": 3},
    "ours 2": {**OURS, "bits": 2, "fit": "range"},
    "llm-compressor GPTQ 3": {"package": "llmcompressor", "bits": 3},
    "hqq 3": {"package": "hqq", "bits": 3},
    "GPTQModel 3": {"package": "gptqmodel", "bits": 3, "symmetric": True},
    "llm-compressor GPTQ 2": {"package": "llmcompressor", "bits": 2},
    "llm-compressor GPTQ 4": {"package": "llmcompressor", "bits": 4},
    "torchao 4": {"package": "torchao", "bits": 4},
    "quanto 4": {"package": "quanto", "bits": 4, "group_size": 128},
    "hqq 4": {"package": "hqq", "bits": 4},
    "GPTQModel 4": {"package": "gptqmodel", "bits": 4, "symmetric": True},
    "llm-compressor AWQ 4": {"package": "llmcompressor", "algorithm": "awq", "bits": 4},
    "auto-round 2": {"package": "auto_round", "bits": 2},
    "auto-round 3": {"package": "auto_round", "bits": 3},
}


def main(arguments: list[str]) -> None:
    params = parameters()
    parser = Parser(prog="python -m quant.benches.peers", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("words", nargs="*", help="only rows whose name contains one of these")
    add_arguments(parser, params)
    parser.add_argument("--lines", type=whole_number, help="of the evaluated text, from the first (all)")
    parser.add_argument("--iterations", type=whole_number, help="of auto-round, a block (200)")
    parser.add_argument("--write", type=Path, help="a JSON file that keeps the results, beside those of other models")
    given = parser.parse_args(arguments)
    chosen = {name: row for name, row in ROWS.items() if not given.words or any(word in name for word in given.words)}
    if not chosen:
        raise InputError(f"no row's name contains {' or '.join(given.words)}; they are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        print_table(compared(_measure(Path(folder), chosen, given, params)["rows"]))


def _measure(folder: Path, chosen: Mapping[str, Mapping], given, params: Mapping) -> dict:
    """Build and score every row that can run here; one that can't is left out with a line that says why."""
    ground, prepared = Ground(folder, given, params, given.lines), {}
    rows = []
    for name, row in chosen.items():
        row = {"method": "peers", **row}
        if given.iterations and row.get("package") == "auto_round":
            row["iterations"] = given.iterations
        planned = variant("row", {"calibrated": params["calibrated"], "variants": {"row": row}})
        method = planned.method
        if method.name not in prepared:
            wants = method.wants(planned.values)
            prepared[method.name] = ground.prepare(method, [wants] if wants else [])
        start, out = time.perf_counter(), folder / "variant"
        try:
            method.build(ground.base, prepared[method.name], planned.values, out,
                         lambda line, name=name: print(f"  {name}: {line}", flush=True))
        except InputError as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        rows.append({"name": name, "bits": row["bits"], "seconds": seconds, **_scored(ground, out, planned)})
        print(f"{name}: {rows[-1]['kld_mnats']:.4f} mnat, {seconds:.0f} s", flush=True)
        found = {"ppl": ground.original["ppl"], "text": Path(given.text).name, "tokens": rows[0]["tokens"], "rows": rows}
        if given.write:
            keep(given.write, Path(given.model).name, found)
    if not rows:
        raise InputError("no row could run here; make peers installs the packages")
    return found


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


def compared(rows: list[dict]) -> list[dict]:
    """The rows with "difference", their mean KLD less ours of the same width, in mnat, with its interval; None for ours."""
    from quant.quality.bootstrap import Blocks, difference

    ours = {row["bits"]: Blocks.from_dict(row["blocks"]) for row in rows if row["package"] is None}
    found = []
    for row in rows:
        paired = None
        if row["package"] and row["bits"] in ours:
            paired = vars(difference(Blocks.from_dict(row["blocks"]), ours[row["bits"]], "kld"))
        found.append(row | {"difference": paired})
    return found


def keep(path: Path, model: str, found: dict) -> None:
    """Add the rows of a model to the file. Rows measured before on the same tokens stay, unless a new one has their name."""
    held = read_json(path) if path.is_file() else {"models": {}}
    before = held["models"].get(model, {"text": None, "tokens": None, "rows": []})
    is_same = (before["text"], before["tokens"]) == (found["text"], found["tokens"])
    rows = {row["name"]: row for row in (before["rows"] if is_same else []) + significant(found["rows"])}
    held["models"][model] = significant({**found, "rows": compared([rows[name] for name in ROWS if name in rows])})
    write_json(path, held)
    draw(held, path.with_suffix(".svg"))


def draw(study: Mapping, path: Path) -> None:
    """Draw divergence over bits of every row, with its interval, a panel for each model, as an SVG file."""
    from matplotlib import pyplot

    from quant.methods import load
    from quant.report.charts import log_axis
    from quant.report.style import in_style, legend_of, look_of, new_axes

    others, ours = look_of(load("peers")), look_of(load("calibrated"))
    with in_style():
        figure, panels = new_axes(8, 4.8, ncols=len(study["models"]), squeeze=False)
        for axes, (model, found) in zip(panels[0], sorted(study["models"].items()), strict=True):
            for row in found["rows"]:
                look, (low, high) = others if row["package"] else ours, row["kld_interval"]
                axes.errorbar(row["bits_per_weight"], row["kld_mnats"], [[row["kld_mnats"] - low], [high - row["kld_mnats"]]],
                              color=look.colour, marker=look.marker, capsize=3)
                axes.annotate(row["name"].rpartition(" ")[0], (row["bits_per_weight"], row["kld_mnats"]), xytext=(5, 3),
                              textcoords="offset points", fontsize=7)
            log_axis(axes.yaxis, axes, "y")
            axes.set(title=model, xlabel="bits per quantized weight", ylabel="mean KL divergence from base (mnat per token)")
            axes.margins(x=0.3)
            legend_of(axes, [others, ours], loc="upper right")
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def print_table(rows: list[dict]) -> None:
    """Print rows that `compared` returned, by width, the least divergence first."""
    print(f"{'row':24} {'bits':>7} {'own':>7} {'whole':>7} {'ppl %':>8} {'KLD mnat':>9} {'95 % interval':>19} {'less ours':>9} "
          f"{'95 % interval':>19} {'top-1 %':>8} {'s':>6}")
    for row in sorted(rows, key=lambda row: (-row["bits"], row["kld_mnats"])):
        own = f"{row['own_bits_per_weight']:.3f}" if row["own_bits_per_weight"] else ""
        paired = row["difference"]
        less = f"{paired['value']:9.4f} {paired['low']:9.4f} {paired['high']:9.4f}" if paired else f"{'':29}"
        print(f"{row['name']:24} {row['bits_per_weight']:7.3f} {own:>7} {row['whole_bits_per_weight']:7.3f} "
              f"{row['ppl_change_pct']:8.3f} {row['kld_mnats']:9.4f} {row['kld_interval'][0]:9.4f} {row['kld_interval'][1]:9.4f} "
              f"{less} {row['top1_agree_pct']:8.3f} {row['seconds']:6.1f}")


if __name__ == "__main__":
    run(main)
