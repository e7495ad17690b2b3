"""Every figure of a run is there, has a caption from the data, and is drawn the same twice; its numbers are right."""

import json
from itertools import combinations, pairwise

import pytest
import torch
from conftest import ROOT
from made_up import PARAMS, made_up, with_only
from matplotlib.text import Text
from PIL import Image

from quant.methods import load, names
from quant.model.checkpoint import Checkpoint
from quant.quality.weight_error import Sample, compare_schemes, error_map, error_of_schemes, histogram
from quant.report.charts import scatter
from quant.report.figures import draw_all, figures_of
from quant.report.metrics import METRICS
from quant.report.style import GRIDS, PARTS, look_of, new_axes
from quant.report.subsets import front_names, pareto_front

ASKED_FOR = {"size-divergence", "family", "bits", "sensitivity", "size-speed", "ppl-change", "divergence", "latency", "bytes",
             "error-map", "histogram", "error-bits", "grids"}


def test_the_front_is_what_nothing_beats():
    assert pareto_front([(1, 9), (2, 5), (3, 6), (4, 1), (4, 0.5)]) == [0, 1, 4]
    small = {"weights_mib": 10.0, "kld_mnats": 9.0}
    assert front_names(made_up(nf4=small, int4={"kld_mnats": 0.5})) == ["nf4", "int4"]
    assert front_names(made_up(nf4=small, int4={"weights_mib": 20.0, "kld_mnats": 8.999, "noise": 0.2})) == ["nf4", "bf16"], (
        "a step is drawn only where it is significant")


def test_every_figure_asked_for_is_drawn(made_up_report):
    folder = made_up_report[0] / "figures"
    assert {path.stem for path in folder.glob("*.svg")} == {path.stem for path in folder.glob("*.png")} == ASKED_FOR
    assert len(list(folder.iterdir())) == 2 * len(ASKED_FOR)
    for path in folder.glob("*.png"):
        assert len(Image.open(path).convert("L").getcolors(256)) > 10, f"{path.name} is empty"


@pytest.mark.slow
def test_equal_runs_give_equal_figures(made_up_report, tmp_path):
    folder, run = made_up_report
    draw_all(run, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / "figures" / path.name).read_bytes(), path.name


def everyone(**metrics):
    """The same change for every variant but base."""
    return {name.replace("-", "_"): metrics for name in PARAMS["variants"]}


def caption(name, params=PARAMS, **changes):
    run = made_up(params, **changes)
    return next(figure for figure in figures_of(run) if figure.name == name).caption(run)


CHANGED = everyone(ppl_change_pct=1.0)
FRONT = {"weights_mib": 10.0, "kld_mnats": 9.0}
CAPTIONS = [  # a figure, a run, and what the caption must show: names, numbers, and the word that carries the verdict
    ("ppl-change", CHANGED, ["No interval contains zero"]),
    ("ppl-change", CHANGED | {"fp4": {}}, ["Hollow", "not significant for `fp4`."]),
    ("size-speed", everyone(decode_speedup=2.0), ["Upper left", "No variant lies below"]),
    ("size-speed", {"nf4": {"decode_speedup": 0.5}}, ["1 of 9 variants lie below"]),
    ("grids", {"nf4": {"kld_mnats": 0.1}}, ["`nf4` is closer to base than `int4`", "`fp4` is not significantly different from",
                                            "100.00 MiB", "Lower is better"]),
    ("grids", {"nf4": {"kld_mnats": 9.0}}, ["`nf4` is further from base than `int4`"]),
    ("size-divergence", {"nf4": FRONT, "int4": {"kld_mnats": 0.5}},
     ["Lower left", "in bold: `nf4` and `int4`", "significantly closer", "16 bits"]),
    ("size-divergence", {"nf4": {"weights_mib": 10.0, "kld_mnats": 0.1}}, ["in bold: `nf4`.", "Only one variant"]),
    ("bits", {}, ["Quantized variants of up to 10 bits"]),
    ("family", {}, ["`whole`", "Bits per byte"]),
    ("sensitivity", {}, ["2,000 tokens", "All blocks together: 3 mnat", "`q` (2)", "block 1 (1.5)"]),
    ("bytes", {}, ["`whole` leaves the most unquantized: 25 %"]),
    ("latency", {"nf4": {"noisy": True}}, ["Shorter is better", "(!) marks", "trusted: `nf4`"]),
    ("latency", {}, ["No timing varied"]),
    ("divergence", {"nf4": {"kld_mnats": 2.0}}, ["`nf4` has the largest mean (2 mnat)", "80 mnat"]),
    ("error-bits", {}, ["divides the error by 2.00", "9.0 % as NF4, 10.0 % as INT4, 12.0 % as FP4", "500 of 1,000"]),
    ("error-map", {}, ["`int4 row`", "13.0 % for `q` of block 1"]),
    ("histogram", {}, ["`h.0.mlp.up`", "group of 64", "3.90 by NF4, 3.60 by FP4, 3.40 by INT4", "INT4 5, NF4 5 and FP4 5"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "parts"), CAPTIONS, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(CAPTIONS)])
def test_captions_show_what_this_run_shows(name, changes, parts):
    text = caption(name, **changes)
    assert text.endswith(".") and "  " not in text and "\n" not in text
    assert [part for part in parts if part not in text] == [], text


def test_every_caption_is_tested():
    assert {name for name, *_ in CAPTIONS} == ASKED_FOR


def test_a_run_of_floats_has_no_share_left_unquantized():
    assert "unquantized" not in caption("bytes", with_only("float"))
    assert "unquantized" not in caption("bytes", PARAMS | {"variants": {"f16": {"method": "llama_cpp", "type": "F16"}}})


def test_labels_of_points_that_lie_together_do_not_cover_each_other():
    figure, axes = new_axes(8, 5)
    results = (made_up().others * 9)[:9]
    scatter(axes, results, [(1 + 0.001 * number, 5) for number in range(8)] + [(9, 9)])
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 9 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    figure.clear()


def test_axes_are_labelled_by_the_table_of_metrics():
    shown = {figure.name: [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.draw(made_up()).axes]
             for figure in figures_of(made_up()) if figure.name in ("size-divergence", "size-speed", "latency", "grids")}
    label = {key: metric.label for key, metric in METRICS.items()}
    assert shown["size-divergence"] == [(label["weights_mib"], label["kld_mnats"])]
    assert shown["size-speed"] == [(label["weights_mib"], label["decode_speedup"])]
    assert [x for x, _ in shown["latency"]] == [f"{label['prefill_ms']}, 128 tokens", label["decode_ms_per_token"]]
    assert [y for _, y in shown["grids"]][:2] == [label["kld_mnats"], label["ppl_change_pct"]]



def test_colours_differ_in_lightness():
    """In grey they differ by 0.02 at least, and by their markers."""
    def lightness(colour):
        return sum(weight * int(colour[i : i + 2], 16) / 255 for weight, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5)))

    for looks in ([look_of(load(name)) for name in names()], list(GRIDS.values())):
        assert len({look.marker for look in looks}) == len(looks)
        greys = sorted(lightness(look.colour) for look in looks)
        assert all(b - a > 0.02 for a, b in pairwise(greys))
    assert len(set(PARTS)) == len(PARTS)


@pytest.fixture
def normal():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    return Sample("a", "up", 0, 16384, weight)


def test_each_bit_halves_the_error_of_a_normal_matrix(normal):
    everything = error_of_schemes([normal])["points"]
    points = {(p["codebook"], p["bits"], p["group_size"]): p for p in everything if p["kind"] == "plain"}
    for bits in range(4, 8):
        ratio = points["linear", bits, 64]["error_pct"] / points["linear", bits + 1, 64]["error_pct"]
        assert 1.9 < ratio < 2.3
    assert points["nf4", 4, 64]["error_pct"] < points["linear", 4, 64]["error_pct"], "NF4 is made for a normal distribution"
    assert points["linear", 4, 64]["bits_per_weight"] == 4.5 and points["linear", 8, "row"]["bits_per_weight"] == 8 + 32 / 256
    for point in everything:
        like = points[point["codebook"], point["bits"], point["group_size"]]
        if point["kind"] == "clipped":
            assert point["error_pct"] < like["error_pct"] and point["bits_per_weight"] == like["bits_per_weight"]
        if point["kind"] == "double":
            assert point["error_pct"] >= 0.99 * like["error_pct"] and point["bits_per_weight"] < like["bits_per_weight"]
    assert {point["kind"] for point in everything} == {"plain", "double", "clipped"}


def test_a_grid_for_normal_weights_loses_on_even_ones():
    even = Sample("a", "up", 0, 16384, torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    points = {(p["codebook"], p["bits"], p["group_size"]): p["error_pct"] for p in error_of_schemes([even])["points"]
              if p["kind"] == "plain"}
    assert points["nf4", 4, 64] > points["linear", 4, 64]


def test_rows_that_end_with_a_shorter_group_are_measured_at_every_group_size():
    odd = Sample("a", "up", 0, 768, torch.randn(8, 96))
    points = {p["group_size"]: p for p in error_of_schemes([odd])["points"] if p["label"].startswith("int4") and
              p["kind"] == "plain"}
    assert {size: p["bits_per_weight"] for size, p in points.items()} == {
        size: pytest.approx(4 + 32 * scales / 96, abs=1e-4) for size, scales in (("row", 1), (128, 1), (64, 2), (32, 3))}


def test_the_map_counts_weights_of_one_place_together(normal):
    spiky = Sample("b", "up", 1, 256, torch.ones(4, 64) * torch.tensor([1.0] * 63 + [70.0]))
    exact = Sample("c", "q", 1, 256, torch.full((4, 64), 7.0))
    cells = {(c["block"], c["role"]): c["error_pct"] for c in error_map([normal, normal, spiky, exact])["cells"]}
    assert set(cells) == {(0, "up"), (1, "up"), (1, "q")}
    assert cells[1, "q"] == 0 and 5 < cells[0, "up"] < 20
    assert cells[1, "up"] == pytest.approx(100 * (63 / (63 + 70**2)) ** 0.5, abs=0.01), "all but the outlier rounds to zero"


def test_the_histogram_lays_the_grids_over_the_matrix(normal):
    data = histogram(normal)
    assert sum(data["share_pct"]) == pytest.approx(100, abs=0.01) and data["group_size"] == 64
    assert [len(data["grids"][name]["values"]) for name in ("linear", "fp4", "nf4")] == [15, 15, 16]
    for grid in data["grids"].values():
        assert grid["values"] == sorted(grid["values"]) and grid["values"][0] == -1 and grid["values"][-1] == 1
        assert sum(grid["share_pct"]) == pytest.approx(100, abs=0.01) and 3 < grid["entropy_bits"] < 4
    assert data["kurtosis"] == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("architecture", ["gpt2", "phi3"])
def test_a_model_of_every_layout_is_sampled(make_model, architecture):
    data = compare_schemes(Checkpoint(make_model(architecture)))
    roles = {cell["role"] for cell in data["map"]["cells"]}
    assert {"q", "k", "v", "o", "up", "down", "embedding", "norm"} <= roles
    assert data["map"]["sampled"] == data["map"]["weights"], "a small model is taken whole"
    assert data["histogram"]["module"] in ("transformer.h.1.mlp.c_fc", "model.layers.1.mlp.gate_up_proj.up")
    shown = data["example"]
    assert shown["module"] == data["histogram"]["module"] and len(shown["weights"]) == 8 and shown["group_size"] == 64
    assert [(grid["codebook"], grid["symmetric"]) for grid in shown["grids"]] == [
        ("linear", True), ("linear", False), ("nf4", True), ("fp4", True)]
    assert data == compare_schemes(Checkpoint(make_model(architecture))), "the same every time"
    json.dumps(data, allow_nan=False)


def test_a_large_weight_is_sampled_and_told(monkeypatch):
    import quant.quality.weight_error as module

    monkeypatch.setattr(module, "MAP_SAMPLE", 1000)
    monkeypatch.setattr(module, "SCHEMES_SAMPLE", 10000)
    data = compare_schemes(Checkpoint(ROOT / "models" / "embedded"))
    assert data["map"]["sampled"] < 0.02 * data["map"]["weights"]
    assert data["schemes"]["sampled"] < 40000
