"""One style for every figure: a colour, a marker and a hatch per family, told apart in grey and by the colour-blind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt


# Okabe & Ito's palette, whose members differ in lightness too.
@dataclass(frozen=True)
class Look:
    label: str
    colour: str
    marker: str
    hatch: str = ""


FAMILIES = {
    "float": Look("not quantized", "#333333", "s"),
    "scratch": Look("from scratch", "#0072B2", "o"),
    "bnb": Look("bitsandbytes", "#E69F00", "^", "//"),
    "gguf": Look("llama.cpp", "#009E73", "D", ".."),
}
GRIDS = {  # within a family: the kind of grid, by line, marker and lightness
    "linear": Look("linear", "#0072B2", "o"),
    "nf4": Look("NF4", "#CC79A7", "*", ".."),
    "fp4": Look("FP4", "#D55E00", "X", "//"),
}
OWN_TABLE = Look("own table", "#56B4E9", "P", "xx")  # a grid that a recipe spells out
INK, QUIET, LINE = "#333333", "#777777", "#bbbbbb"
PARTS = ("#333333", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#999999")  # of a whole, by lightness and hatch
HATCHES = ("", "//", "..", "xx", "", "\\\\")

SETTINGS = {
    "figure.figsize": (8, 4.8),
    "figure.dpi": 120,
    "figure.constrained_layout.w_pad": 0.08,  # inches; names at the edge don't touch it
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
    """A context in which figures are made and saved."""
    return plt.rc_context(SETTINGS)


def save(figure, folder: Path, name: str) -> None:
    """name.svg and name.png."""
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # all is in its place; the second file need not find it again
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    plt.close(figure)


def legend_of(axes, looks: Iterable[Look], **options) -> None:
    """What the markers mean."""
    handles = [plt.Line2D([], [], linestyle="", marker=look.marker, color=look.colour, label=look.label) for look in looks]
    axes.legend(handles=handles, **options)


def looks_of(families: Sequence[str]) -> list[Look]:
    return [look for family, look in FAMILIES.items() if family in families]
