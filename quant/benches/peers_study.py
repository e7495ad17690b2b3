"""The study that quant.benches.peers writes: its rows compared, drawn and printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TITLES = ("KL divergence from base\n(mnat per token, 95 %)", "bits a quantized weight,\nas its package stores it",
          "time to quantize\n(s of the processor)", "decoding speed here\n(base = 1)")
MARKERS = ("o", "D", "^", "s")  # of models


def compared(rows: list[dict]) -> list[dict]:
    """The rows by width, the widest first, and then by divergence, each with "difference" for its "blocks": mean KLD less ours of
    the same width, in mnat, with its interval; None for ours."""
    from quant.quality.bootstrap import Blocks, difference

    blocks = {row["name"]: Blocks.from_dict(row["blocks"]) for row in rows}
    ours = {row["bits"]: blocks[row["name"]] for row in rows if row["package"] is None}
    found = []
    for row in sorted(rows, key=lambda row: (-row["bits"], row["kld_mnats"])):
        is_paired = row["package"] and row["bits"] in ours
        paired = vars(difference(blocks[row["name"]], ours[row["bits"]], "kld")) if is_paired else None
        found.append({key: value for key, value in row.items() if key != "blocks"} | {"difference": paired})
    return found


def draw(study: Mapping, path: Path) -> None:
    """Draw divergence, stored size, time to quantize and decoding speed, a line a row and a marker a model, as SVG."""
    from matplotlib import pyplot

    from quant.methods import load
    from quant.report.charts import log_axis
    from quant.report.readme import quantizers_of
    from quant.report.style import INK, in_style, look_of, new_axes

    models = sorted(study["models"].items())
    names = quantizers_of(study)
    others, ours = look_of(load("peers")).colour, look_of(load("calibrated")).colour
    with in_style():
        figure, axes = new_axes(10, 0.3 * len(names) + 1.4, ncols=4, sharey=True)
        for (_, found), marker, shift in zip(models, MARKERS, (-0.12, 0.12, 0.24, -0.24), strict=False):
            for row in found["rows"]:
                colour = others if row["package"] else ours
                look = {"color": colour, "marker": marker, "markersize": 6, "markeredgecolor": "white"}
                y, (low, high), speed = names.index(row["name"]) + shift, row["kld_interval"], row["decode"]["speedup"]
                own = row["own_bits_per_weight"] or row["bits_per_weight"]
                axes[0].errorbar(row["kld_mnats"], y, xerr=[[row["kld_mnats"] - low], [high - row["kld_mnats"]]], **look)
                axes[1].errorbar(own, y, **look)
                axes[2].errorbar(row["cpu_seconds"], y, **look)
                axes[3].errorbar(speed["median"], y, xerr=speed["mad"], **look)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        for panel, title in zip(axes, TITLES, strict=True):
            panel.set_xlabel(title)
        for panel in (axes[0], axes[2]):
            log_axis(panel.xaxis, panel, "x")
            panel.grid(which="minor", visible=False)
            panel.tick_params(axis="x", which="minor", labelbottom=False)
        shapes = [pyplot.Line2D([], [], linestyle="", marker=marker, color=INK, label=name)
                  for (name, _), marker in zip(models, MARKERS, strict=False)]
        kinds = [pyplot.Line2D([], [], linestyle="", marker="o", color=colour, label=label)
                 for colour, label in ((ours, "this project"), (others, "another's quantizer"))]
        figure.legend(handles=shapes + kinds, loc="outside upper center", ncols=len(shapes) + 2)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def print_table(rows: list[dict]) -> None:
    """Print rows that `compared` returned."""
    print(f"{'row':24} {'bits':>7} {'own':>7} {'whole':>7} {'ppl %':>8} {'KLD mnat':>9} {'95 % interval':>19} {'less ours':>9} "
          f"{'95 % interval':>19} {'top-1 %':>8} {'CPU s':>6} {'decode':>12}")
    for row in rows:
        own = f"{row['own_bits_per_weight']:.3f}" if row["own_bits_per_weight"] else ""
        paired = row["difference"]
        less = f"{paired['value']:9.4f} {paired['low']:9.4f} {paired['high']:9.4f}" if paired else f"{'':29}"
        speed = row["decode"]["speedup"]
        decode = f"{speed['median']:.2f} ± {speed['mad']:.2f}{' (!)' if row['decode']['is_noisy'] else ''}"
        print(f"{row['name']:24} {row['bits_per_weight']:7.3f} {own:>7} {row['whole_bits_per_weight']:7.3f} "
              f"{row['ppl_change_pct']:8.3f} {row['kld_mnats']:9.4f} {row['kld_interval'][0]:9.4f} {row['kld_interval'][1]:9.4f} "
              f"{less} {row['top1_agree_pct']:8.3f} {row['cpu_seconds']:6.1f} {decode:>12}")
    if any(row["decode"]["is_noisy"] for row in rows):
        print("(!) scattered, or beside other work: don't trust this speed")
