"""One style for every figure: a colour and a marker per family, told apart in grey and by the colour-blind."""

from __future__ import annotations

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
    hatch: str


FAMILIES = {
    "float": Look("not quantized", "#333333", "s", ""),
    "scratch": Look("from scratch", "#0072B2", "o", ""),
    "bnb": Look("bitsandbytes", "#E69F00", "^", "//"),
    "gguf": Look("llama.cpp", "#009E73", "D", ".."),
}

SETTINGS = {
    "figure.figsize": (8, 4.8),
    "figure.dpi": 120,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "quant",  # equal figures are equal bytes
    "svg.fonttype": "path",
}


def new_axes(width: float = 8, height: float = 4.8):
    with plt.rc_context(SETTINGS):
        return plt.subplots(figsize=(width, height), layout="constrained")


def save(figure, folder: Path, name: str) -> None:
    """name.svg and name.png."""
    with plt.rc_context(SETTINGS):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    plt.close(figure)


def family_legend(axes, families: list[str], place: str = "best") -> None:
    handles = [
        plt.Line2D([], [], linestyle="", marker=FAMILIES[f].marker, color=FAMILIES[f].colour, label=FAMILIES[f].label)
        for f in FAMILIES if f in families
    ]
    axes.legend(handles=handles, loc=place)
