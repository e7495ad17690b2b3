"""One style for every figure: a colour, a marker and a hatch per method, distinct in grey and for the colour-blind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from quant.methods import Method, load, names
from quant.tensor.codebooks import CODEBOOKS, LINEAR


@dataclass(frozen=True)
class Look:
    """A label and how it is drawn. colour: "#rrggbb"; marker, hatch: as matplotlib names them."""

    label: str
    colour: str
    marker: str
    hatch: str = ""


# Okabe & Ito's palette, whose colours differ in lightness too. _SPARE: for methods without a look of their own.
_SPARE = (("#56B4E9", "v", "\\\\"), ("#D55E00", "X", "//"), ("#F0E442", "<", ".."))
_GRIDS = {"linear": ("#0072B2", "o", ""), "nf4": ("#CC79A7", "*", ".."), "fp4": ("#D55E00", "X", "//")}


@cache
def look_of(method: Method) -> Look:
    """The look of a method in every figure of every run: its own, or a spare one that no other method has."""
    if method.look:
        return Look(method.label, method.look.colour, method.look.marker, method.look.hatch)
    plain = [name for name in names() if load(name).look is None]
    return Look(method.label, *_SPARE[plain.index(method.name) % len(_SPARE)])


def _looks_of_grids() -> dict[str, Look]:
    spare = iter(cycle((("#009E73", "s", "\\\\"), ("#E69F00", "D", "xx"))))
    labels = {LINEAR: "linear", **{name: book.label for name, book in CODEBOOKS.items()}}
    return {name: Look(label, *(_GRIDS.get(name) or next(spare))) for name, label in labels.items()}


GRIDS = _looks_of_grids()  # by name of the grid
OWN_TABLE = Look("own table", "#56B4E9", "P", "xx")  # a grid that a recipe spells out
INK, QUIET, LINE = "#333333", "#777777", "#bbbbbb"
PARTS = ("#333333", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#999999")  # colours of the parts of a stacked bar
HATCHES = ("", "//", "..", "xx", "", "\\\\")

SETTINGS = {
    "figure.figsize": (8, 4.8),
    "figure.dpi": 120,
    "figure.constrained_layout.w_pad": 0.08,  # inches between the edge and the names
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "quant",  # equal figures are equal bytes
    "svg.fonttype": "path",
}


def new_axes(width: float = 8, height: float = 4.8, **grid):
    """A figure and its axes; `grid` as of pyplot.subplots."""
    return plt.subplots(figsize=(width, height), layout="constrained", **grid)


def in_style():
    """A context manager with SETTINGS, within which figures are drawn and saved."""
    return plt.rc_context(SETTINGS)


def save(figure, folder: Path, name: str) -> None:
    """Write name.svg and name.png in `folder`, and close the figure."""
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # the layout is done; the second file need not repeat it
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    plt.close(figure)


def legend_of(axes, looks: Iterable[Look], **options) -> None:
    """Add a legend of markers."""
    handles = [plt.Line2D([], [], linestyle="", marker=look.marker, color=look.colour, label=look.label) for look in looks]
    axes.legend(handles=handles, **options)


def looks_of(methods: Iterable[Method]) -> list[Look]:
    """The looks of methods, each once, in order."""
    return list(dict.fromkeys(look_of(method) for method in methods))
