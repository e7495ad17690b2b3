"""The chapter on grids: its tables are the project's own, its arithmetic can be done again, its sentences follow the data."""

import re
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from made_up import PARAMS, WEIGHTS, made_up, with_only, with_rows

from quant.methods import load
from quant.quality.weight_error import Sample, example
from quant.report import notes, tables, theory
from quant.report.figures import figures_of
from quant.report.subsets import equal_grids
from quant.report.templates import environment
from quant.tensor.codebooks import CODEBOOKS
from quant.tensor.double_quant import SCALES_PER_BLOCK
from quant.tensor.grids import grid_of
from quant.tensor.qtensor import dequantize, layout, quantize
from quant.tensor.scheme import Scheme

GRIDS = [Scheme(4, 64), Scheme(4, 64, symmetric=False), Scheme(4, 64, codebook="nf4"), Scheme(4, 64, codebook="fp4")]


def chapter(run):
    """The chapter as the report has it, without figures."""
    grids = equal_grids(run)
    return environment().get_template("chapters/grids.md.jinja").render(
        run=run, notes=notes, theory=theory, grids=grids, grids_table=tables.quality(grids),
        figures={figure.name: f"<{figure.name}>" for figure in figures_of(run)},
    )


def of_method(run, name):
    """The chapter of a method, with its results."""
    method = load(name)
    results = run.of_method(method)
    return environment().from_string(method.text("chapter.md.jinja")).render(
        variants="", rows=[{"name": r.name, "values": r.variant.values} for r in results], results=results, base=run.base,
        table=tables.of_another_runtime(run, method),
    )


def cells(table):
    """The rows of a Markdown table, without its headings."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_nf4_is_made_of_quantiles_of_a_normal_distribution():
    quantile, outermost = NormalDist().inv_cdf, 1 - (1 / 32 + 1 / 30) / 2

    def half(count):
        return [quantile(outermost - i * (outermost - 0.5) / count) for i in range(count)]

    values = sorted([0.0, *half(8), *(-value for value in half(7))])
    assert [value / values[-1] for value in values] == pytest.approx(CODEBOOKS["nf4"].values, abs=1e-6)
    text = chapter(made_up())
    assert f"= {outermost:.7f}`" in text and f"`Q(d) = {values[-1]:.3f}`" in text


def test_the_table_of_values_is_that_of_the_grids():
    rows = cells(theory.values_table())
    assert len(rows) == 16 and rows[0][3:] == ["unused", ""]
    for column, scheme in ((1, GRIDS[2]), (2, GRIDS[3]), (4, GRIDS[0])):
        grid = grid_of(scheme)
        shown = [(int(row[0]), float(row[column])) for row in rows if row[column]]
        for code, value in shown:
            assert value == pytest.approx(float(grid.decode(torch.tensor([code]))[0]) / grid.limit, abs=6e-5)


def test_what_is_said_of_fp4():
    positive = sorted(value for value in CODEBOOKS["fp4"].values if value > 0)
    assert positive[0] == pytest.approx(1 / 192) and positive[1] - positive[0] > 1 / 7
    e2m1 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    assert positive[1:] == pytest.approx([value / 6 for value in e2m1[1:]])
    assert e2m1[0] / 6 == pytest.approx(1 / 12)
    weight = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0))
    schemes = (GRIDS[3], Scheme(4, 64, codebook=(0.0, *e2m1, *(-value for value in e2m1))), GRIDS[0], GRIDS[2])
    errors = [100 * float((dequantize(quantize(weight, s)) - weight).norm() / weight.norm()) for s in schemes]
    assert re.search("error of {:.1f} %; with .* {:.1f} %, with INT4 .* {:.1f} %, with NF4 {:.1f} %".format(*errors),
                     chapter(made_up()))
    assert 2.5 < float(weight.abs().amax(1).median()) < 2.6


def test_the_bits_of_the_trade_offs_are_those_of_the_tensors():
    def bits(scheme):
        rows, columns = 1024, 1024
        parts = layout((rows, columns), scheme)
        return 8 * sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in parts.values()) / (rows * columns)

    text = chapter(made_up())
    assert [bits(scheme) for scheme in GRIDS] == [4.5, 5.0, 4.5, 4.5]
    assert "| scale | 4.5 |" in text and "| scale, lowest weight | 5.0 |" in text
    double = bits(Scheme(4, 64, codebook="nf4", double_quant=True))
    assert f"{double:.3f}" == "4.127" and text.count("4.127 with double quantization") == 2
    assert f"8/64 + 32/(64 × {SCALES_PER_BLOCK}) = {double - 4:.3f}" in text
    for name, said in (("Q2_K", "2.625"), ("Q6_K", "6.5625"), ("MXFP4", "4.25"), ("NVFP4", "4.5")):
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        assert 8 * size / block == float(said) and said in text


def redone(line):
    """Compute again every formula `expression = result` of a line; returns the results."""
    found = re.findall(r"`([^`=]+) = ([^`=]+)`", line)
    assert len(found) == 2, line
    for expression, result in found:
        assert re.fullmatch(r"[\d.() +×/-]+", expression)
        decimals = len(result.partition(".")[2])
        assert round(eval(expression.replace("×", "*")), decimals) == float(result), line
    return [float(result) for _, result in found]


@pytest.mark.parametrize("spread", [0.05, 1.0, 30.0, 1e-7], ids=str)
def test_the_worked_example_can_be_done_on_paper(spread):
    values = spread * torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    data = example(Sample("h.1.up", "up", 1, 256, values))
    shown = theory.example(data)
    assert shown.where | {"lowest": 0, "highest": 0} == {"module": "h.1.up", "row": 0, "first": 0, "last": 63, "size": 64,
                                                         "lowest": 0, "highest": 0}
    weights = [row[0] for row in cells(shown.weights)]
    place = weights.index(shown.walked)
    table = cells(theory.values_table())
    for line, grid, column in zip(shown.lines, cells(shown.grids), range(1, 5), strict=True):
        quotient, restored = redone(line)
        code = int(re.search(r"code (\d+)", line)[1])
        assert line.startswith(f"{grid[0]}: ") and line.count(grid[1]) == 2 and line.count(shown.walked) == 1
        assert cells(shown.weights)[place][column] == f"{line.rpartition('= ')[2].rstrip('`.')} (code {code})"
        if grid[0] == "INT4":
            assert round(quotient) + 8 == code
        elif grid[0] == "INT4, asymmetric":
            assert round(quotient) == code and grid[3] in line
        else:
            values = [float(row[column - 2]) for row in table]
            assert min(range(16), key=lambda c: abs(values[c] - quotient)) == code
        assert restored != 0


def test_the_example_shows_what_the_quantizer_does():
    values = 0.05 * torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    data = example(Sample("h.1.up", "up", 1, 256, values))
    group = values[:1, :64]
    assert data["weights"] == group[0, :8].tolist() and data["highest"] == float(group.max())
    shown = cells(theory.example(data).weights)
    for i, (scheme, found) in enumerate(zip(GRIDS, data["grids"], strict=True)):
        restored = dequantize(quantize(group, scheme))
        assert found["restored"] == restored[0, :8].tolist()
        assert [float(row[i + 1].split()[0]) for row in shown] == pytest.approx(found["restored"], abs=1.1e-4)
        assert found["error_pct"] == pytest.approx(100 * float((restored - group).norm() / group.norm()), abs=1e-3)


def test_a_model_without_different_weights_has_no_example():
    assert example(Sample("a", "up", 0, 64, torch.ones(1, 64))) is None
    second = example(Sample("a", "up", 0, 128, torch.cat([torch.zeros(1, 64), torch.randn(1, 64)], 1)))
    assert second["start"] == 64
    without = replace(made_up(), weights=WEIGHTS | {"example": None})
    assert "An example" in chapter(made_up()) and "An example" not in chapter(without)


def test_group_sizes_list_what_was_measured():
    rows = cells(theory.group_sizes(WEIGHTS))
    assert rows == [["64 weights", "4.500", "10.00", "9.00", "12.00"], ["64 weights, scales in 8 bits", "4.500", "", "9.10", ""],
                    ["64 weights, clipped for least error", "4.500", "9.50", "", ""]]


def test_published_results_stand_beside_those_of_the_run():
    found = theory.published(made_up(int4={"ppl_change_pct": 5.0}, fp4={"ppl_change_pct": 2.0}))
    rows = {row[0]: row[1:] for row in cells(found.table)}
    assert rows["Int4"] == ["34.34", "1.2528", "int4", "21.000", "1.0500", "+5.000"]
    assert rows["Float4 (E3M0)"] == ["29.48", "1.0755", "", "", "", ""] and rows["NFloat4 + DQ"][4] == "1.0000"
    assert found.verdicts == ("`nf4` is better than `fp4`, as in QLoRA; `nf4` is better than `int4`, as in QLoRA; "
                              "`fp4` is better than `int4`, as in QLoRA")
    other = theory.published(made_up(nf4={"ppl_change_pct": 5.0}, fp4={"noise": 1.0}, int4={"noise": 1.0})).verdicts
    assert "`fp4` is better than `nf4`, unlike in QLoRA" in other and "`fp4` and `int4` do not differ significantly" in other


@pytest.mark.parametrize("params", [with_only("bitsandbytes"), with_only("float"), with_rows({"nf4": None}),
                                    with_rows({"int4": None, "fp4": None})], ids=["bnb", "float", "no-nf4", "nf4-alone"])
def test_a_run_without_equal_grids_has_no_published_results(params):
    run = made_up(params)
    text = chapter(run)
    assert theory.published(run) is None and "QLoRA's grid" not in text and "### Linear grids" in text


@pytest.mark.parametrize("params", [PARAMS, with_only("quant"), with_only("float"), with_only("llama_cpp")])
def test_the_chapter_is_whole_for_any_rows(params):
    text = chapter(made_up(params))
    assert "  " not in re.sub(r"```.*?```|^\|[^\n]*", "", text, flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


BNB = with_rows({"int8": {"method": "bitsandbytes", "type": "int8"},
                 "dq": {"method": "bitsandbytes", "type": "nf4", "double_quant": True}})


@pytest.mark.parametrize(("changes", "parts"), [
    ({"int8": {"decode_speedup": 0.5}},
     ["0.50 times base's speed, in 4 bits at 1.00", "`int8` was slower", "and slower than base"]),
    ({"int8": {"decode_speedup": 1.5}}, ["`int8` was faster than every round"]),
    ({}, ["Their rounds overlap"]),
    ({"dq": {"held": ("float32", "bfloat16"), "kld_mnats": 0.5}},
     ["`dq` was repacked", "not the weights in memory", "first: `dq` 0.500, `bnb-nf4` 1.000 and `int8` 1.000 mnat"]),
])  # fmt: skip
def test_bitsandbytes_is_told_by_its_numbers(changes, parts):
    text = of_method(made_up(BNB, **changes), "bitsandbytes")
    assert [part for part in parts if part not in text] == [], text
    assert [row[0] for row in cells(text.partition("\n\n")[2].partition("\n\n")[0])] == ["base", "bnb-nf4", "int8", "dq"]
    assert "In `dq` the scales are stored in 8 bits" in text


def test_bitsandbytes_tells_only_of_the_types_that_it_has():
    four = of_method(made_up(), "bitsandbytes")
    assert "**4 bits** (`bnb-nf4`)" in four and "**8 bits**" not in four and "rounds" not in four.partition("**4 bits**")[0]
    eight = of_method(made_up(with_rows({"bnb-nf4": None}, BNB)), "bitsandbytes")
    assert "**8 bits** (`int8`)" in eight
    only = of_method(made_up(with_rows({"bnb-nf4": None, "dq": None}, BNB)), "bitsandbytes")
    assert "**4 bits**" not in only and "repacked" not in only


def test_types_of_llama_cpp_are_those_of_its_blocks():
    kinds = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_S", "Q5_K_M", "Q6_K", "IQ4_XS")
    rows = {kind: {"method": "llama_cpp", "type": kind} for kind in kinds}
    text = of_method(made_up(PARAMS | {"variants": rows}), "llama_cpp")
    (table,) = re.findall(r"\| variant \| type .*\n(?:\|.*\n)+", text)
    shown = {row[0]: row[2:4] for row in cells(table)}
    assert set(shown) == set(kinds) - {"IQ4_XS"}, "a type without an entry is left out"
    for kind, (block, bits) in shown.items():
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[re.sub("_[SM]$", "", kind)]]
        assert float(bits) == 8 * size / weights and block == ("none" if weights == 1 else str(weights))


def test_types_that_llama_cpp_replaced_are_named():
    run = made_up(with_rows({"q4": {"method": "llama_cpp", "type": "Q4_K_M"}}))
    assert "That happened here: `q4` has no tensor" in of_method(run, "llama_cpp")
    run["q4"].quality["module_counts"] = {"GGUF q4_k": 10, "GGUF f32": 5}
    text = of_method(run, "llama_cpp")
    assert "That happened here" not in text and "super-block" in text
    assert "super-block" not in of_method(made_up(), "llama_cpp")
