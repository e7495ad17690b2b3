"""Bring the README's tables and figure up to date with reports/: python -m quant.report.readme"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from quant.files import read_json, write_text
from quant.report.results import Result
from quant.report.tables import metric_column, table
from quant.variants import variants

COLUMNS = ("ppl", "ppl_change_pct", "kld_mnats", "top1_agree_pct", "bits_per_weight", "weights_mib", "decode_ms_per_token",
           "decode_speedup")  # fmt: skip
SPEED = {  # variants of reports/bench.json, as the README calls them
    "fp32": "transformers, float32", "bf16": "transformers, bfloat16", "fp32_our_decoding": "float32, our decoding",
    "int8_dequantized_each_call": "int8, dequantized at every call", "int8": "**int8**, whole model",
    "int4": "**int4**, groups of 64", "nf4": "**NF4**, groups of 64", "bnb_int8": "bitsandbytes int8",
    "bnb_nf4": "bitsandbytes NF4", "llamacpp_q8_0": "llama.cpp Q8_0", "llamacpp_q4_0": "llama.cpp Q4_0",
}  # fmt: skip


def section(name: str) -> re.Pattern:
    """What stands between the README's marks of that name."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def results_table(root: Path) -> str:
    """The table of reports/metrics, as committed."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    found = [Result(v, read_json(root / "reports" / "metrics" / f"{v.name}.json"), {}, {}) for v in variants(params)]
    return table(found, [metric_column(key) for key in COLUMNS]) + "\n"


def speed_tables(root: Path) -> str:
    """The tables of reports/bench.json, as committed: a model each."""
    lines = []
    for name, found in sorted(read_json(root / "reports" / "bench.json")["models"].items()):
        about, prompts, memory = found["environment"], found["prompts"], found["memory_read_gb_per_s"]
        lines += [
            f"`{name}`, {found['threads']} threads of {about['cpu']} ({', '.join(about['cpu_flags'])}), memory reads "
            f"{memory:.0f} GB/s; medians ± MAD of {found['rounds']} rounds in turn, speeds against float32:",
            "",
            "| | MB / token | decode ms | × | GB/s | " + " | ".join(f"prompt of {n}, ms | ×" for n in prompts.values()) + " |",
            "|:--|--:|--:|--:|--:|" + "--:|--:|" * len(prompts),
        ]
        for variant, title in SPEED.items():
            numbers = found["variants"][variant]
            cells = [f"{numbers['weight_bytes_per_token'] / 1e6:.0f}", *_pair(numbers["decode"]), f"{numbers['gb_per_s']:.1f}"]
            cells += [cell for phase in prompts for cell in _pair(numbers[phase])]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _pair(phase: dict) -> list[str]:
    ms, speed = phase["ms"], phase["speed_over_fp32"]
    digits = 1 if ms["median"] < 100 else 0
    return [f"{ms['median']:.{digits}f} ± {ms['mad']:.{digits}f}", f"{speed['median']:.2f}"]


def main(root: Path = Path()) -> None:
    readme = root / "README.md"
    text = section("results").sub(lambda _: results_table(root), readme.read_text(encoding="utf-8"))
    write_text(readme, section("speed").sub(lambda _: speed_tables(root), text))
    (root / ".github").mkdir(exist_ok=True)
    shutil.copyfile(root / "reports" / "figures" / "size-quality.svg", root / ".github" / "size-quality.svg")


if __name__ == "__main__":
    main()
