"""The results of a run: for every variant of params.yaml its metrics, read from the stages' files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.errors import InputError
from quant.files import read_json
from quant.variants import Variant, variants

METRICS = (
    "ppl", "ppl_word", "bits_per_byte", "ppl_change_pct", "kld_mnats", "top1_agree_pct", "bits_per_weight", "weights_mib",
    "disk_mib", "peak_rss_mib", "load_s", "prefill_ms", "prefill_speedup", "decode_ms_per_token", "decode_speedup",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """metrics: the keys of METRICS; quality, speed: all that the stages wrote."""

    variant: Variant
    metrics: Mapping[str, float]
    quality: Mapping
    speed: Mapping

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def family(self) -> str:
        return self.variant.family


def read_results(params: Mapping, reports: Path = Path("reports")) -> list[Result]:
    """In the order of the table. The list comes from params.yaml, so files of variants that are gone don't count."""
    results = []
    for variant in variants(params):
        quality, speed = (_read(reports / kind / f"{variant.name}.json") for kind in ("quality", "speed"))
        found = {**quality["metrics"], **speed["metrics"]}
        results.append(Result(variant, {key: found[key] for key in METRICS}, quality, speed))
    return results


def _read(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path} is missing; run dvc repro, which makes it")
    return read_json(path)
