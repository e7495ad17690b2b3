"""Bring the README's table and figure up to date with reports/: python -m quant.report.readme"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from quant.files import read_json, write_text
from quant.report.results import Result
from quant.report.tables import METRIC_COLUMNS, table
from quant.variants import variants

COLUMNS = ("ppl", "ppl_change_pct", "kld_mnats", "top1_agree_pct", "bits_per_weight", "weights_mib", "decode_ms_per_token",
           "decode_speedup")  # fmt: skip
SECTION = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def results_table(root: Path) -> str:
    """The table of reports/metrics, as committed."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    found = [Result(v, read_json(root / "reports" / "metrics" / f"{v.name}.json"), {}, {}) for v in variants(params)]
    return table(found, [METRIC_COLUMNS[key] for key in COLUMNS]) + "\n"


def main(root: Path = Path()) -> None:
    readme = root / "README.md"
    write_text(readme, SECTION.sub(lambda _: results_table(root), readme.read_text(encoding="utf-8")))
    (root / ".github").mkdir(exist_ok=True)
    shutil.copyfile(root / "reports" / "figures" / "size-quality.svg", root / ".github" / "size-quality.svg")


if __name__ == "__main__":
    main()
