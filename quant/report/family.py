"""Models of several sizes on one text: their memory and quality, and whether a larger one, quantized, beats a smaller one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from quant.errors import printable
from quant.hub.family import UNQUANTIZED
from quant.progress import MIB
from quant.quality.bootstrap import Blocks, Difference, difference_in_bits_per_byte
from quant.report.results import Run
from quant.report.tables import grid
from quant.report.wording import number

MAIN = "main"  # the model that all other chapters are about


@dataclass(frozen=True)
class Point:
    """A model under one variant. weights_mib: in memory, of an unquantized model as stored, usually in 16 bits. bits_per_byte:
    of text; interval: its 95 % interval."""

    model: str
    variant: str
    weights_mib: float
    bits_per_weight: float
    bits_per_byte: float
    interval: tuple[float, float]
    blocks: Blocks


@dataclass(frozen=True)
class Model:
    """name: of the section `family` in params.yaml, or MAIN; points: the unquantized model first."""

    name: str
    source: str
    parameters: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Match:
    """The best variant of a larger model that is no larger than a smaller model in its stored form; None: none is.

    change: bits per byte of the larger's variant minus those of the smaller model.
    """

    larger: Model
    smaller: Model
    best: Point | None
    change: Difference | None

    @property
    def verdict(self) -> str:
        if self.change is None:
            return "too large"
        if not self.change.is_significant:
            return "alike"
        return "better" if self.change.value < 0 else "worse"


def models(run: Run) -> list[Model]:
    """The main model with all its variants, then the relatives; only the main model where there are none."""
    base = run.base
    stored, parameters = base.metrics["disk_mib"], base.quality["parameters"]
    points = [_point(MAIN, UNQUANTIZED, stored, 8 * stored * MIB / parameters, base.quality)]
    points += [_point(MAIN, r.name, r.metrics["weights_mib"], r.metrics["bits_per_weight"], r.quality) for r in run.others]
    found = [Model(MAIN, run.params["model"]["source"], parameters, points)]
    for relative in run.family:
        rows = [row for row in relative["rows"] if "refused" not in row]
        found.append(Model(relative["name"], relative["source"], relative["parameters"], [
            Point(relative["name"], row["variant"], row["weights_mib"], row["bits_per_weight"], row["bits_per_byte"],
                  tuple(row["interval"]), Blocks.from_dict(row["blocks"])) for row in rows]))
    return found


def matches(run: Run) -> list[Match]:
    """For each larger and smaller model of the family: the best of the larger in the bytes of the smaller."""
    found = []
    for larger, smaller in permutations(models(run), 2):
        if larger.parameters <= smaller.parameters:
            continue
        whole = smaller.points[0]
        fitting = [point for point in larger.points if point.weights_mib <= whole.weights_mib]
        best = min(fitting, key=lambda point: point.bits_per_byte, default=None)
        found.append(Match(larger, smaller, best, best and difference_in_bits_per_byte(best.blocks, whole.blocks)))
    return found


def table(run: Run) -> str:
    """The models, unquantized and under the rows of the section `family`, the smallest in bytes first."""
    shown = [UNQUANTIZED, *run.params["family"]["variants"]]
    names = {model.name: label(model.source) for model in models(run)}
    points = sorted((p for model in models(run) for p in model.points if p.variant in shown), key=lambda p: p.weights_mib)
    return grid(["model", "variant", "weights MiB", "bits / weight", "bits / byte", "95 % interval"],
                [[names[p.model], p.variant, number(p.weights_mib, "{:.2f}"), number(p.bits_per_weight, "{:.2f}"),
                  number(p.bits_per_byte, "{:.4f}"), " to ".join(number(end, "{:.4f}") for end in p.interval)] for p in points],
                left=2)


def label(source: str) -> str:
    """The last part of a folder or a Hub name, without characters that are markup in a figure, a table or code."""
    return re.sub(r"[^\w .:@+=,-]", "_", printable(Path(source).name, 60))


def title(model: Model) -> str:
    """The model's folder or Hub name and its size, for a legend."""
    return f"{label(model.source)}, {model.parameters / 1e6:.3g} M weights"


def _point(model: str, variant: str, weights_mib: float, bits: float, quality) -> Point:
    return Point(model, variant, weights_mib, bits, quality["metrics"]["bits_per_byte"],
                 tuple(quality["intervals"]["bits_per_byte"]), Blocks.from_dict(quality["blocks"]))
