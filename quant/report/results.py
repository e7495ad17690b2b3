"""The results of a run, read from the files of the stages: the metrics and measurements of every variant of params.yaml."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quant.errors import InputError
from quant.hub.family import Family
from quant.methods import Method
from quant.model.recipe import Recipe
from quant.outside import read_json
from quant.quality.bootstrap import Blocks
from quant.refusal import Refusal
from quant.report.metrics import METRICS
from quant.variants import Variant, variants


@dataclass(frozen=True)
class Result:
    """One variant's results. metrics: by the keys of METRICS, those of speed only where it was timed; quality, speed: the whole
    contents of the stages' files."""

    variant: Variant
    metrics: Mapping[str, float]
    quality: Mapping
    speed: Mapping

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def method(self) -> Method:
        return self.variant.method

    @property
    def recipe(self) -> Recipe | None:
        """The weights it quantizes and how it stores them; None for a variant that no recipe describes."""
        return self.method.recipe(self.variant.values)

    @property
    def is_timed(self) -> bool:
        return self.variant.is_timed

    @property
    def is_trusted(self) -> bool:
        """Whether its timings are good enough for a headline."""
        return self.is_timed and not self.speed["is_noisy"]

    @property
    def noted(self) -> Mapping:
        """What its manifest says of how it was made, each entry where it applies: "calibration" (text, windows), "example"
        (one row's weights) and "allocation" (bits by part)."""
        return self.quality.get("manifest", {})

    @cached_property
    def blocks(self) -> Blocks:
        """The sums by block of text, for paired comparisons with other variants."""
        return Blocks.from_dict(self.quality["blocks"])

    def bytes_by(self, key: str) -> dict[str, int]:
        """Bytes of the weights by a key of the size breakdown: group, role, part or dtype."""
        sums: dict[str, int] = {}
        for row in self.quality["size_breakdown"]:
            sums[row[key]] = sums.get(row[key], 0) + row["bytes"]
        return sums

    @property
    def decode(self) -> Mapping:
        """The timing of decoding: ms and speedup over base with their raw rounds, bandwidth, noise."""
        return self.speed["timing"]["decode"]


@dataclass(frozen=True)
class LeftOut:
    """A variant that could not be made, run or timed, and why."""

    variant: Variant
    refusal: Refusal

    @property
    def line(self) -> str:
        """For a terminal."""
        return f"{self.variant.name}: {self.refusal.reason}"


@dataclass(frozen=True)
class Run:
    """The data of the figures and the report.

    results: base first; weights: see quant.quality.weight_error; sensitivity: see quant.quality.sensitivity; family: of other
    models, see quant.quality.family; trained: see quant.training.study, None where the file is missing; left_out: the rows that
    have no results.
    """

    results: Sequence[Result]
    weights: Mapping
    params: Mapping
    sensitivity: Mapping = field(default_factory=lambda: {"parts": []})
    family: Sequence[Mapping] = ()
    trained: Mapping | None = None
    left_out: Sequence[LeftOut] = ()

    @property
    def base(self) -> Result:
        return self["base"]

    @property
    def others(self) -> list[Result]:
        return [result for result in self.results if result.name != "base"]

    @property
    def timed(self) -> list[Result]:
        """The results with timings; base is one of them."""
        return [result for result in self.results if result.is_timed]

    def __getitem__(self, name: str) -> Result:
        return next(result for result in self.results if result.name == name)

    @property
    def methods(self) -> list[Method]:
        """The methods of the variants, each once, in the order of params.yaml."""
        return list({result.method.name: result.method for result in self.results}.values())

    def of_method(self, method: Method) -> list[Result]:
        return [result for result in self.results if result.method.name == method.name]

    def named(self, names: Iterable[str]) -> list[Result]:
        return [self[name] for name in names]


def read_run(params: Mapping, reports: Path = Path("reports")) -> Run:
    """The results in the order of params.yaml; files of variants that it no longer lists are ignored.

    Raises InputError where a file is missing, or lacks a metric.
    """
    results, left_out = [], []
    for variant in variants(params):
        quality, speed = (_read(reports / kind / f"{variant.name}.json") for kind in ("quality", "speed"))
        refused = quality.get("refused") or speed.get("refused")
        if refused:
            left_out.append(LeftOut(variant, Refusal.from_dict(refused)))
            continue
        found = {**quality["metrics"], **speed["metrics"]}
        missing = sorted(key for key, metric in METRICS.items() if key not in found and (variant.is_timed or not metric.of_speed))
        if missing:
            raise InputError(f"the results of {variant.name} lack {', '.join(missing)}; run dvc repro to measure again")
        results.append(Result(variant, {key: found[key] for key in METRICS if key in found}, quality, speed))
    studies = reports / "studies"
    family = [_read(studies / "family" / f"{name}.json") for name in Family.from_dict(params.get("family") or {}).models]
    trained = _read(studies / "trained.json") if (studies / "trained.json").is_file() else None  # of a frozen stage
    weights, sensitivity = (_read(studies / f"{name}.json") for name in ("weights", "sensitivity"))
    return Run(tuple(results), weights, params, sensitivity, family, trained, tuple(left_out))


def read_metrics(path: Path) -> dict[str, dict[str, float]]:
    """All metrics by variant from a file such as reports/variants.csv. A variant that was not timed lacks those of speed; one
    that was left out is not there."""
    if not path.is_file():
        raise InputError(f"{path} is missing; run dvc repro, which makes it")
    with open(path, newline="", encoding="utf-8") as file:
        return {row["variant"]: {key: float(row[key]) for key in METRICS if row.get(key)}
                for row in csv.DictReader(file) if not row.get("left_out")}


def _read(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path} is missing; run dvc repro, which makes it")
    return read_json(path)
