"""Updates the README's tables and figure from reports/ and quant.report.metrics: python -m quant.report.readme

A table stands between two marks of its name, such as <!-- results --> and <!-- /results -->.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import yaml

from quant.command import Parser, run
from quant.errors import InputError
from quant.files import write_text
from quant.outside import read_json
from quant.report.metrics import METRICS, README, shown_in
from quant.report.results import Result, read_metrics
from quant.report.tables import grid, metric_column, table
from quant.variants import variants

ROWS = ("base", "bf16", "whole", "nf4", "rtn4", "mix4", "bnb-nf4", "gguf-q4_k_m")  # variants in the README's tables
GGUF = {"llama.cpp": "llama.cpp", "llama.cpp, importance": "with importance matrix", "ours": "ours"}
SPEED = {  # variants of reports/bench.json, and their titles in the README
    "fp32": "transformers, float32", "bf16": "transformers, bfloat16", "fp32_our_decoding": "float32, our decoding",
    "int8_dequantized_each_call": "int8, dequantized at every call", "int8": "**int8**, whole model",
    "int4": "**int4**, groups of 64", "nf4": "**NF4**, groups of 64", "int3": "**int3**, groups of 64",
    "int2": "**int2**, groups of 64", "mixed": "**3 to 6 bits**, by role",
    "int4_rounded_prompts": "int4, prompts in bfloat16",
    "int4_int8_prompts": "int4, prompts in 8 bits", "bnb_int8": "bitsandbytes int8",
    "bnb_nf4": "bitsandbytes NF4", "llamacpp_q8_0": "llama.cpp Q8_0", "llamacpp_q4_0": "llama.cpp Q4_0",
}  # fmt: skip
PRECISIONS = {"int8": "in 8 bits"}  # of products, beside "exact" (quant.kernels.precision)


def section(name: str) -> re.Pattern:
    """The pattern of the text between the README's marks of that name."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def results_table(root: Path) -> str:
    """The results of the variants of ROWS, from reports/variants.csv."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    return _table(read_metrics(root / "reports" / "variants.csv"), params)


def ptb_table(root: Path) -> str:
    """The results of the same variants of a GPT-2 trained on the Penn Treebank, on its test text, from reports/ptb-gpt2.csv."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    return _table(read_metrics(root / "reports" / "ptb-gpt2.csv"), params, with_speed=False)


def _table(measured: dict[str, dict[str, float]], params: dict, with_speed: bool = True) -> str:
    rows = [Result(v, measured[v.name], {}, {}) for v in variants(params) if v.name in ROWS and v.name in measured]
    shown = [metric for metric in shown_in(README) if with_speed or not metric.of_speed]
    return table(rows, [metric_column(metric) for metric in shown]) + "\n"


def training_table(root: Path) -> str:
    """What the models of this project have learnt, from the files that stages/train.py wrote beside them."""
    rows = []
    for name in ("embedded", "embedded-small"):
        found = read_json(root / "models" / name / "training.json")
        ngrams = found["kneser_ney"]
        order = str(ngrams["best_order"])
        rows.append([f"`models/{name}`", f"{found['parameters']:,}", f"{found['training']['tokens']:,}",
                     f"{found['training']['best_epoch']} of {found['training']['epochs']}",
                     f"{found['validation']['perplexity']:.2f}", f"{found['test']['perplexity']:.2f}",
                     f"{ngrams['test_perplexity'][order]:.2f} (order {order})"])
    headings = ["model", "weights", "training tokens", "best epoch", "validation ppl", "test ppl", "Kneser-Ney, test ppl"]
    return grid(headings, rows) + "\n"


def quantizers_table(root: Path) -> str:
    """Other projects' quantizers beside this project's, from the study of quant.benches.peers; a line where there is none."""
    path = root / "reports" / "quantizers.json"
    if not path.is_file():
        return "Not measured yet: `make peers-report`.\n"
    study, lines = read_json(path), []
    models = {model: {row["name"]: row for row in found["rows"]} for model, found in sorted(study["models"].items())}
    for name in quantizers_of(study):
        held = [rows.get(name) for rows in models.values()]
        row = next(found for found in held if found)
        line = [name, f"{row['bits_per_weight']:.3f}", f"{row['own_bits_per_weight']:.3f}" if row["own_bits_per_weight"] else ""]
        for found in held:
            line += [f"{found['kld_mnats']:.3f}", _less(found["difference"])] if found else ["", ""]
        line.append(" / ".join(f"{found['cpu_seconds']:.0f}" if found else "" for found in held))
        line.append(" / ".join(_speed(found["decode"]) if found else "" for found in held))
        lines.append(line)
    headings = [heading for model in models for heading in (f"`{model}` KLD mnat", "more than ours")]
    return grid(["quantizer, bits", "bits / weight", "as it stores them", *headings, "CPU s", "decode ×"], lines) + "\n"


def quantizers_of(study: Mapping) -> list[str]:
    """The names of all rows, which end with their bits, the widest first."""
    names = dict.fromkeys(row["name"] for _, found in sorted(study["models"].items()) for row in found["rows"])
    return sorted(names, key=lambda name: -int(name.rpartition(" ")[2]))


def _speed(decode: Mapping) -> str:
    return f"{decode['speedup']['median']:.1f}{' (!)' if decode['is_noisy'] else ''}"


def _less(difference: Mapping | None) -> str:
    return f"{difference['value']:+.2f} ({difference['low']:+.2f} to {difference['high']:+.2f})" if difference else ""


def gguf_table(root: Path) -> str:
    """GGUF files of equal type, from the study of quant.benches.gguf; a line where there is none."""
    path = root / "reports" / "gguf.json"
    if not path.is_file():
        return "Not measured yet: `python -m quant.benches.gguf --run --write reports/gguf.json`.\n"
    lines = []
    for model, found in sorted(read_json(path)["models"].items()):
        for kind, rows in groupby(found["rows"], key=lambda row: row["type"]):
            by_codes = {row["codes"]: row for row in rows}
            size = " / ".join(dict.fromkeys(f"{row['bytes']:,}" for row in by_codes.values()))
            lines.append([f"`{model}`", kind, size, *(_divergence(by_codes.get(codes)) for codes in GGUF)])
    return grid(["model", "type or bits", "bytes", *GGUF.values()], lines, left=2) + "\n"


def _divergence(row: Mapping | None) -> str:
    if row is None:
        return ""
    own = "" if row["in_llama_cpp"] is None else f" ({row['in_llama_cpp']:.2f})"
    return f"{row['kld_mnats']:.2f}{own}"


def metrics_table() -> str:
    """The meaning of every metric."""
    return grid(["metric", "meaning"], [[f"`{metric.key}`", metric.meaning] for metric in METRICS.values()], left=2) + "\n"


def speed_tables(root: Path) -> str:
    """The speeds of reports/bench.json, a table per model."""
    lines = []
    for name, found in sorted(read_json(root / "reports" / "bench.json")["models"].items()):
        about, prompts, memory = found["environment"], found["prompts"], found["memory_read_gb_per_s"]
        lines += [
            f"`{name}`, {found['threads']} threads of {about['cpu']} ({', '.join(about['cpu_flags'])}), memory reads "
            f"{memory:.0f} GB/s; medians ± MAD of {found['rounds']} alternating rounds, speeds relative to float32:",
            "",
            "| | MB / token | decode ms | × | GB/s | " + " | ".join(f"prompt of {n}, ms | ×" for n in prompts.values()) + " |",
            "|:--|--:|--:|--:|--:|" + "--:|--:|" * len(prompts),
        ]
        for variant, title in SPEED.items():
            if variant not in found["variants"]:
                continue  # other precisions are those that the processor has
            numbers = found["variants"][variant]
            cells = [f"{numbers['weight_bytes_per_token'] / 1e6:.0f}", *_pair(numbers["decode"]), f"{numbers['gb_per_s']:.1f}"]
            cells += [cell for phase in prompts for cell in _pair(numbers[phase])]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        title = "Several sequences at once: ms for one token of each of them, and how many times that is the time of one:"
        lines += ["", title, "", *_batches(found["batches"]), ""]
    return "\n".join(lines)


def precision_table(root: Path) -> str:
    """Divergence in each precision of products, and in brackets that from exact products, from the study of
    quant.benches.precision; a line where there is none."""
    path = root / "reports" / "precision.json"
    if not path.is_file():
        return "Not measured yet: `python -m quant.benches.precision --write reports/precision.json`.\n"
    cells: dict[str, dict[str, str]] = {}
    for row in read_json(path)["rows"]:
        added = "" if row["precision"] == "exact" else f" ({row['from_exact_mnats']:.3f})"
        cells.setdefault(row["variant"], {})[row["precision"]] = f"{row['kld_mnats']:.3f}{added}"
    names = list(next(iter(cells.values())))
    rows = [[f"`{variant}`", *(of_one[name] for name in names)] for variant, of_one in cells.items()]
    return grid(["variant", *names], rows) + "\n"


def _batches(found: Mapping[str, Mapping]) -> list[str]:
    """A row for each variant and precision, a column for each number of sequences."""
    counts = list(next(iter(next(iter(found.values())).values())))
    rows = []
    for variant, of_variant in found.items():
        for choice, by_count in of_variant.items():
            ms = [by_count[count]["median"] for count in counts]
            title = variant if choice == "exact" else f"{variant}, {PRECISIONS[choice]}"
            rows.append([title, *(f"{each:.1f} ({each / ms[0]:.2f})" for each in ms)])
    return grid(["sequences", *counts], rows).splitlines()


def _pair(phase: dict) -> list[str]:
    ms, speed = phase["ms"], phase["speed_over_fp32"]
    digits = 1 if ms["median"] < 100 else 0
    return [f"{ms['median']:.{digits}f} ± {ms['mad']:.{digits}f}", f"{speed['median']:.2f}"]


def tables_of(root: Path) -> dict[str, str]:
    """Every table of the README, by the name of its marks."""
    return {"results": results_table(root), "ptb": ptb_table(root), "speed": speed_tables(root), "metrics": metrics_table(),
            "precision": precision_table(root), "training": training_table(root), "quantizers": quantizers_table(root),
            "gguf": gguf_table(root)}


def update(root: Path) -> None:
    """Write the tables into README.md in the folder `root`, and copy the figure it shows. Raises InputError without its marks."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, made in tables_of(root).items():
        text, count = section(name).subn(lambda _, new=made: new, text)
        if count != 1:
            raise InputError(f"README.md has {count} sections <!-- {name} --> ... <!-- /{name} -->; expected one, for a table")
    write_text(readme, text)
    (root / ".github").mkdir(exist_ok=True)
    shutil.copyfile(root / "reports" / "figures" / "size-divergence.svg", root / ".github" / "size-divergence.svg")


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.report.readme", description="Update the README's tables and figure from reports/.")
    parser.parse_args(words)
    if not Path("README.md").is_file():
        raise InputError(f"there is no README.md in {Path.cwd()}; run this in the project's folder")
    update(Path())
    print("README.md, .github/size-divergence.svg")


if __name__ == "__main__":
    run(main)
