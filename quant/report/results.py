"""The results of a run, read from the files of the stages: the metrics and measurements of every variant of params.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quant.errors import InputError
from quant.files import read_json
from quant.methods import Method
from quant.model.recipe import Recipe
from quant.quality.bootstrap import Blocks
from quant.report.metrics import METRICS
from quant.variants import Variant, variants


@dataclass(frozen=True)
class Result:
    """One variant's results. metrics: by the keys of METRICS; quality, speed: the whole contents of the stages' files."""

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
class Run:
    """The data of the figures and the report. results: base first; weights: see quant.quality.weight_error."""

    results: Sequence[Result]
    weights: Mapping
    params: Mapping

    @property
    def base(self) -> Result:
        return self["base"]

    @property
    def others(self) -> list[Result]:
        return [result for result in self.results if result.name != "base"]

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
    results = []
    for variant in variants(params):
        quality, speed = (_read(reports / kind / f"{variant.name}.json") for kind in ("quality", "speed"))
        found = {**quality["metrics"], **speed["metrics"]}
        missing = sorted(set(METRICS) - set(found))
        if missing:
            raise InputError(f"the results of {variant.name} lack {', '.join(missing)}; run dvc repro to measure again")
        results.append(Result(variant, {key: found[key] for key in METRICS}, quality, speed))
    return Run(tuple(results), _read(reports / "weights.json"), params)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path} is missing; run dvc repro, which makes it")
    return read_json(path)
