"""The report says what the data says: with opposite data, the opposite."""

import csv
import dataclasses
import runpy

import pytest
import yaml
from conftest import ROOT
from made_up import CORPUS, MODEL, PARAMS, made_up, with_only, with_rows, write_results

from quant.benches.study import keep
from quant.errors import InputError
from quant.files import write_json
from quant.outside import read_json
from quant.report import readme, tables
from quant.report.comparable import equal_but_for_the_grid, equal_but_for_the_selection, same_format
from quant.report.document import render_markdown
from quant.report.figures import figures_of
from quant.report.findings import findings, order_by
from quant.report.metrics import DIFF, METRICS, REPORT, SWEEP, Metric, better_corner, rounded, shown_in
from quant.report.results import read_run
from quant.report.subsets import summary


def everyone(**metrics):
    """The same change for every variant but base."""
    return {name.replace("-", "_"): metrics for name in PARAMS["variants"]}


def found(kind, params=PARAMS, **changes):
    """The finding of this kind."""
    (finding,) = [finding for finding in findings(made_up(params, **changes)) if finding.kind == kind]
    return finding


def kinds(params=PARAMS, **changes):
    return [finding.kind for finding in findings(made_up(params, **changes))]


SMALL = {"weights_mib": 10.0, "ppl_change_pct": 0.5}


@pytest.mark.parametrize(("changes", "names"), [
    ({"whole": SMALL}, ("whole",)),
    ({"whole": SMALL, "nf4": SMALL}, ("whole", "nf4")),
    ({"whole": SMALL | {"ppl_change_pct": 3.0}, "nf4": {"weights_mib": 20.0}}, ("nf4",)),
    ({"whole": SMALL | {"ppl_change_pct": 0.9, "noise": 2.0}, "nf4": {"weights_mib": 20.0}}, ("nf4",)),  # may exceed 1 %
], ids=["one", "equals", "too far", "unsure"])  # fmt: skip
def test_the_smallest_is_chosen_among_those_surely_near_base(changes, names):
    said = found("smallest", **changes)
    assert said.names == names and said.numbers["weights_mib"] == changes[names[0]]["weights_mib"]


def test_where_none_is_near_base_the_nearest_is_named():
    far = everyone(ppl_change_pct=5.0) | {"fp4": {"ppl_change_pct": 4.0}}
    assert found("none_near", **far).names == ("fp4",) and "smallest" not in kinds(**far)


@pytest.mark.parametrize(("changes", "kind", "names"), [
    ({"nf4": {"decode_speedup": 3.0}}, "fastest", ("nf4",)),
    ({"nf4": {"decode_speedup": 3.0}, "int4": {"decode_speedup": 2.0}}, "fastest", ("nf4",)),
    ({"nf4": {"decode_speedup": 3.0}, "int4": {"decode_speedup": 2.95}}, "fastest", ("nf4", "int4")),
    (everyone(decode_speedup=0.5) | {"nf4": {"decode_speedup": 0.6}}, "none_faster", ("nf4",)),
    ({}, "none_faster", ("bf16",)),  # rounds on both sides of 1 prove nothing
], ids=["one", "apart", "overlapping", "all slower", "undecided"])  # fmt: skip
def test_the_fastest_beats_base_in_every_round(changes, kind, names):
    assert found(kind, **changes).names == names


def test_a_scattered_timing_is_in_no_headline():
    changes = {"gguf_q4_0": {"decode_speedup": 2.0, "noisy": True}, "nf4": {"decode_speedup": 1.5, "weights_mib": 9.0},
               "whole": {"decode_speedup": 0.5, "weights_mib": 9.0}}
    said = found("fastest", **changes)
    assert said.names == ("nf4",) and said.numbers["scattered"] == ["gguf-q4_0"]
    assert found("smaller_not_faster", **changes).numbers["faster"] == ["nf4"], "the two findings agree"
    assert summary(made_up(**changes))["fastest_decode_speedup"] == 1.5
    assert "none_trusted" in kinds(**everyone(noisy=True)) and "smaller_not_faster" not in kinds(**everyone(noisy=True))
    assert "fastest_decode_speedup" not in summary(made_up(**everyone(noisy=True)))


@pytest.mark.parametrize("best", ["nf4", "gguf-q4_0"])
def test_the_best_at_four_bits_turns_with_the_data(best):
    order = [best, *(name for name in ("nf4", "int4", "fp4", "bnb-nf4", "gguf-q4_0") if name != best)]
    said = found("best_at_four_bits", **{name.replace("-", "_"): {"kld_mnats": 1.0 + i} for i, name in enumerate(order)})
    assert said.names == (best,) and said.numbers["further"] == order[1:]


def test_equals_at_four_bits_are_not_ranked():
    unsure = {"nf4": {"kld_mnats": 1.0, "noise": 1.0}, "int4": {"kld_mnats": 1.01, "noise": 1.0, "weights_mib": 7.0},
              **{name: {"kld_mnats": 9.0} for name in ("fp4", "bnb_nf4", "gguf_q4_0")}}
    said = found("best_at_four_bits", **unsure)
    assert said.names == ("int4", "nf4") and said.numbers["smallest"] == ["int4"] and said.numbers["weights_mib"] == 7.0
    assert sorted(said.numbers["further"]) == ["bnb-nf4", "fp4", "gguf-q4_0"]


def test_a_variant_that_quantizes_little_is_not_the_best_at_four_bits():
    little = {"nf4": {"kld_mnats": 0.1, "bits_per_weight": 24.6}, "int4": {"bits_per_weight": 5.9, "kld_mnats": 0.5},
              **{name: {"bits_per_weight": 5.5} for name in ("fp4", "bnb_nf4", "gguf_q4_0")}}
    said = found("best_at_four_bits", **little)
    assert said.names == ("int4",) and said.numbers["larger"] == ["nf4"]
    assert summary(made_up(**little))["best_4bit_kld_mnats"] == 0.5


@pytest.mark.parametrize(("changes", "verdict"), [
    ({"nf4": {"kld_mnats": 0.1, "ppl_change_pct": -1.0}}, "better"),
    ({"int4": {"kld_mnats": 0.1, "ppl_change_pct": -1.0}}, "worse"),
    ({"nf4": {"noise": 1.0}, "int4": {"noise": 1.0}}, "alike"),
])  # fmt: skip
def test_nonlinear_and_linear_turn_with_the_data(changes, verdict):
    said = found("grids", **changes)
    assert said.names == ("int4", "nf4", "fp4") and said.numbers["linear"] == "int4"
    assert said.numbers["against"]["nf4"]["kld"] == said.numbers["against"]["nf4"]["ppl"] == verdict


def test_grids_of_unequal_size_are_not_compared():
    sizes = {"int4": {"weights_mib": 19.0}, "nf4": {"weights_mib": 20.0}, "fp4": {"weights_mib": 21.0}}
    assert "grids" not in kinds(**sizes) and "grids" in kinds()
    assert "grids" not in {figure.name for figure in figures_of(made_up(**sizes))}
    assert "grids" in {figure.name for figure in figures_of(made_up())}


def test_smaller_is_called_slower_only_where_it_is():
    small = {"weights_mib": 50.0}
    said = found("smaller_not_faster", whole=small | {"decode_speedup": 0.3}, nf4=small | {"decode_speedup": 3.0}, int4=small)
    assert (said.names, said.numbers["faster"], said.numbers["undecided"]) == (("whole",), ["nf4"], 1)
    slow = {"whole": small | {"decode_speedup": 0.3}}
    assert found("smaller_not_faster", **slow).numbers["memory_share_pct"] == 25
    assert found("smaller_not_faster", base={"gb_per_s": 15.0}, **slow).numbers["memory_share_pct"] is None
    assert found("smaller_not_slower", nf4=small | {"decode_speedup": 3.0}).numbers["smaller"] == 1


def test_selections_are_listed_by_size_with_the_changes_that_are_significant():
    said = found("selections", whole={"weights_mib": 20.0, "ppl_change_pct": 2.0}, selective={"weights_mib": 40.0})
    assert said.names == ("whole", "selective") and said.numbers["ppl_change_pct"] == {"whole": 2.0}


def test_two_implementations_of_a_format_are_compared_by_divergence():
    assert [pair["is_significant"] for pair in found("same_format", nf4={"noise": 1.0}).numbers["pairs"]] == [False]
    (pair,) = found("same_format", bnb_nf4={"kld_mnats": 1.1, "held": ("float32", "bfloat16")}).numbers["pairs"]
    assert pair["names"] == ("nf4", "bnb-nf4") and pair["is_significant"] and pair["only_second"] == ["bfloat16"]
    tiers = order_by(made_up(bnb_nf4={"kld_mnats": 1.1}), "kld")
    assert tiers[-1] == ["bnb-nf4"], "as the table of tiers has it"


def test_only_unquantized_variants_show_whether_runtimes_agree():
    params = with_rows({name: {"method": "llama_cpp", "type": name} for name in ("TQ1_0", "MXFP4_MOE", "IQ4_XS", "BF16")})
    said = found("runtimes", params, gguf_f16={"ppl_change_pct": 0.5}, TQ1_0={"ppl_change_pct": 60.0})
    assert said.names == ("gguf-f16", "BF16") and said.numbers["ppl_change_pct"] == {"gguf-f16": 0.5, "BF16": 0.0}


def test_significant_changes_are_counted():
    changed = everyone(ppl_change_pct=1.0)
    assert found("all_changed", **changed).names == ()
    assert found("unchanged", **changed | {"fp4": {"noise": 1.0}}).names == ("fp4",)
    by_divergence = {name: {"kld_mnats": 1.0 + i} for i, name in enumerate(everyone())}
    numbers = found("unchanged", **by_divergence).numbers
    assert (numbers["pairs"], numbers["kld"], numbers["ppl"]) == (36, 36, 0)


FAR = everyone(ppl_change_pct=5.0)
HALF = {"weights_mib": 50.0}
SENTENCES = [  # a run, and what the sentence of this kind must show: names, numbers, and the word that carries the verdict
    ("smallest", {"whole": SMALL}, ["`whole`", "10.00 MiB", "10.0 times", "5.0 times", "+0.500 %", "+0.497 to +0.503"]),
    ("smallest", {"whole": SMALL, "nf4": SMALL}, ["`whole` and `nf4`", "(`nf4`, 95 % interval", "All 9 variants"]),
    ("none_near", FAR | {"fp4": {"ppl_change_pct": 4.0}}, ["1 %", "`fp4`", "+3.997 to +4.003"]),
    ("fastest", {"nf4": {"decode_speedup": 3.0}}, ["`nf4`", "3.00 times", "1.00 ms per token"]),
    ("fastest", {"nf4": {"decode_speedup": 3.0}, "int4": {"decode_speedup": 2.95}},
     ["`nf4` and `int4`", "3.00 and 2.95", "overlap"]),
    ("fastest", {"nf4": {"decode_speedup": 3.0}, "int4": {"decode_speedup": 2.0, "noisy": True}},
     ["Not ranked, because their timings scattered too widely: `int4`"]),
    ("none_trusted", everyone(noisy=True), ["No speed can be ranked"]),
    ("none_faster", everyone(decode_speedup=0.5) | {"nf4": {"decode_speedup": 0.6}},
     ["`nf4`", "0.60 times", "from 0.59 to 0.61"]),
    ("best_at_four_bits", {"nf4": {"kld_mnats": 0.5, "bits_per_weight": 22.0}, "fp4": {"bits_per_weight": 33.5}},
     ["`nf4`", "0.500 mnat", "100.00 MiB", "22.00 bits", "It is closer to base than `", "Not compared: `fp4`,", "1.5 times"]),
    ("best_at_four_bits", {"int4": {"weights_mib": 7.0}},
     ["cannot rank (divergence 1.000 mnat)", "smallest of them: `int4`, 7.00 MiB"]),
    ("grids", {"nf4": {"kld_mnats": 0.1, "noise": 0.1}},
     ["100.00 MiB each", "`int4` 1.000 mnat, `nf4` 0.100 mnat and `fp4` 1.000 mnat", "with `int4`, `nf4` is better in divergence",
      "not significantly different in perplexity (0.000 %"]),
    ("smaller_not_slower", {"nf4": HALF | {"decode_speedup": 3.0}}, ["of 1 variant ", "none is reliably slower"]),
    ("smaller_not_faster", {"whole": HALF | {"decode_speedup": 0.3}, "nf4": HALF | {"decode_speedup": 3.0}, "int4": HALF},
     ["of 3 variants", "1 decodes reliably slower (`whole`)", "1 reliably faster (`nf4`)", "for 1 the rounds", "25 %"]),
    ("selections", {"whole": {"weights_mib": 20.0, "ppl_change_pct": 2.0}},
     ["`whole` 20.00 MiB, divergence 1.000 mnat, perplexity +2.000 %; `selective` 100.00 MiB", "no significant change"]),
    ("same_format", {"bnb_nf4": {"kld_mnats": 1.1, "held": ("float32", "bfloat16")}},
     ["`nf4` 1.000 and `bnb-nf4` 1.100 mnat, a significant difference", "`bnb-nf4` also holds bfloat16"]),
    ("runtimes", {"gguf_f16": {"ppl_change_pct": 0.05}}, ["`gguf-f16` agrees with base, 0.0500 %"]),
    ("runtimes", {"gguf_f16": {"ppl_change_pct": 0.5}}, ["`gguf-f16` **does not agree** with base, 0.5000 %"]),
    ("all_changed", everyone(ppl_change_pct=1.0), ["no variant's interval contains zero"]),
    ("unchanged", everyone(ppl_change_pct=1.0) | {"fp4": {"noise": 1.0, "kld_mnats": 5.0}},
     ["`fp4`, because the interval contains zero", "Of 36 pairs of variants perplexity ranks 8, divergence 8"]),
    ("unchanged", {name: {"kld_mnats": 1.0 + i} for i, name in enumerate(everyone())},
     ["`bf16`", "finer measure", "of 36 pairs", "ranks 36, perplexity 0"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "parts"), SENTENCES, ids=[f"{i}-{kind}" for i, (kind, *_) in enumerate(SENTENCES)])
def test_a_sentence_shows_its_names_and_numbers(kind, changes, parts):
    text = found(kind, **changes).text
    assert text.startswith("**") and text.endswith(".") and "  " not in text and "\n" not in text
    assert [part for part in parts if part not in text] == [], text


def test_every_finding_is_in_the_report():
    run = made_up(nf4={"decode_speedup": 3.0, "weights_mib": 99.0}, int4={"weights_mib": 99.0}, fp4={"weights_mib": 99.0})
    text = render_markdown(run, CORPUS, MODEL)
    assert all(f"- {finding.text}\n" in text for finding in findings(run)) and len(findings(run)) == 9


def test_nothing_is_ranked_within_a_tier():
    changes = {"nf4": {"kld_mnats": 3.0, "noise": 1.0}, "int4": {"kld_mnats": 3.01, "noise": 1.0}, "fp4": {"kld_mnats": 9.0}}
    tiers = order_by(made_up(**changes), "kld")
    assert tiers[-1] == ["fp4"] and {"nf4", "int4"} == set(tiers[-2])
    assert not any("base" in tier for tier in tiers), "base's divergence from itself is no result"
    assert order_by(made_up(**changes), "ppl")[0].count("base") == 1


def test_each_method_tells_of_its_own_variants():
    assert "In `nf4`" not in render_markdown(made_up(), CORPUS, MODEL)
    params = with_rows({"nf4": {"double_quant": True}, "int4": {"symmetric": False, "fit": "hqq"}})
    text = render_markdown(made_up(params), CORPUS, MODEL)
    assert "In `nf4` the scales are stored in 8 bits" in text and "In `int4` each group also stores its lowest value" in text
    assert "In `int4` the scales follow another rule" in text
    assert "**From scratch** (`whole`, `selective`, `int4`, `nf4` and `fp4`)" in text and "**bitsandbytes** (`bnb-nf4`)" in text


def test_a_chapter_of_a_method_comes_with_its_variants():
    text = render_markdown(made_up(), CORPUS, MODEL).partition("## GGML and GGUF")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows[-4:] == ["| variant", "| base", "| gguf-f16", "| gguf-q4_0"]
    other = render_markdown(made_up(with_only("quant", "float")), CORPUS, MODEL)
    assert "## GGML" not in other and "Variants of llama.cpp: no row" in other and "**bitsandbytes** (" not in other


def test_memory_of_a_gpu_is_shown_where_there_is_one():
    assert "GPU" not in tables.memory(made_up())
    cuda = {"allocated_mib": 31.0, "load_peak_mib": 32.0, "generate_peak_mib": 33.0}
    lines = tables.memory(made_up(nf4={"cuda": cuda})).splitlines()
    assert lines[0].endswith("| GPU loading MiB | GPU generating MiB | GPU allocated MiB |")
    (line,) = [line for line in lines if line.startswith("| nf4 |")]
    assert line.endswith("| 32 | 33 | 31 |")


def test_which_variants_compare_comes_from_their_recipes():
    def compared(params):
        run = made_up(params)
        groups = (equal_but_for_the_grid(run), equal_but_for_the_selection(run), same_format(run))
        return [[[result.name for result in group] for group in found] for found in groups]

    assert compared(PARAMS) == [[["int4", "nf4", "fp4"]], [["whole", "selective"]], [["nf4", "bnb-nf4"]]]
    assert compared(with_rows({"nf4": {"group_size": 32}})) == [[["int4", "fp4"]], [["whole", "selective"]], []]
    double = with_rows({"bnb-nf4": {"double_quant": True}})
    assert compared(double)[2] == []
    assert compared(with_rows({"nf4": {"double_quant": True}}, double))[2] == [["nf4", "bnb-nf4"]]


def test_a_grid_that_a_recipe_spells_out_takes_part():
    params = with_rows({"own": {**PARAMS["variants"]["nf4"], "codebook": [value / 7 for value in range(-7, 8)]}})
    assert found("grids", params, own={"kld_mnats": 0.1}).numbers["against"]["own"]["kld"] == "better"
    run = made_up(params)
    (figure,) = [figure for figure in figures_of(run) if figure.name == "grids"]
    assert [label.get_text() for label in figure.draw(run).axes[0].get_xticklabels()] == ["int4", "nf4", "fp4", "own"]


def test_warnings_come_first():
    def warnings(corpus=CORPUS, **changes):
        text = render_markdown(made_up(**changes), corpus, MODEL)
        return [line for line in text.partition("## Findings")[0].splitlines() if line.startswith("> ")]

    assert warnings(nf4={"noisy": True}) == []
    (few,) = warnings(CORPUS | {"sentences": 2999})
    assert few.startswith("> **Few lines.** 2,999 lines")
    (busy,) = warnings(**everyone(noisy=True))
    assert "9 of 10 timings" in busy and "dvc repro" in busy


def test_what_was_skipped_is_listed_with_its_reason():
    def section(params=PARAMS, **changes):
        text = render_markdown(made_up(params, **changes), CORPUS, MODEL)
        return text.partition("## What was skipped")[2].partition("\n## ")[0]

    said = section()
    assert "Prefill of 512 tokens" in said and "llama.cpp" not in said and "timings" not in said
    assert "Reliable timings for `nf4`: " in section(nf4={"noisy": True})
    assert "for `bf16`, `whole`, `selective`, `int4` and 5 more: " in section(**everyone(noisy=True))


def test_a_run_of_one_variant_reports_too():
    params = PARAMS | {"variants": {"whole": PARAMS["variants"]["whole"]}}
    assert not {"best_at_four_bits", "grids", "selections", "same_format", "runtimes"} & set(kinds(params))
    assert "figures/grids" not in render_markdown(made_up(params), CORPUS, MODEL)


def test_the_name_of_a_file_is_no_markup(made_up_report):
    """Of a model's file, which the provenance lists: neither as HTML nor through Markdown's raw attribute."""
    html = (made_up_report[0] / "report.html").read_text()
    assert "<img src=x" not in html and "&lt;img src=x&gt;" in html


def test_the_document_in_three_forms(made_up_report):
    folder, run = made_up_report
    html = (folder / "report.html").read_text()
    assert html.count("data:image/svg+xml;base64,") == len(figures_of(run)) and "figures/" not in html
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "report.html", "report.md", "report.pdf"]
    assert (folder / "report.md").read_text() == render_markdown(run, CORPUS, MODEL)


def test_a_table_has_a_cell_for_every_heading():
    run = made_up()
    texts = [tables.quality(run.results), *(tables.table(run.results, columns) for columns in (tables.DIVERGENCE, tables.SPEED,
                                                                                               tables.MEMORY))]
    for lines in map(str.splitlines, texts):
        assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + len(run.results)


def test_metrics_have_the_decimals_that_are_worth_reading():
    values = rounded(dict.fromkeys(METRICS, -0.00000123456) | {"ppl": 7.838765})
    assert values["ppl"] == 7.8388 and str(values["kld_mnats"]) == "0.0"
    assert list(values) == list(METRICS)
    assert METRICS["ppl_change_pct"].format(-0.0001) == "0.000" and METRICS["ppl_change_pct"].format(0.5) == "+0.500"


def test_a_metric_says_which_way_is_better(monkeypatch):
    assert {metric.better for metric in METRICS.values()} == {"lower", "higher"}
    assert METRICS["decode_speedup"].best([1, 3, 2]) == 3 and METRICS["kld_mnats"].best([1, 3, 2]) == 1
    assert better_corner("weights_mib", "ppl") == "Lower left" and better_corner("weights_mib", "decode_speedup") == "Upper left"
    monkeypatch.setitem(METRICS, "ppl", dataclasses.replace(METRICS["ppl"], better="higher"))
    assert better_corner("weights_mib", "ppl") == "Upper left"


def test_a_new_metric_is_a_row_of_the_table_of_metrics(monkeypatch, tmp_path):
    """Everything that shows metrics shows one that is computed and listed, with no other line changed."""
    new = Metric("joules_per_token", "J / token", "energy per token (J)", "{:.1f}", 2, "lower", "joules per token",
                 "energy of decoding a token, in joules", (REPORT, "readme", SWEEP, DIFF))
    monkeypatch.setitem(METRICS, new.key, new)
    write_results(made_up(nf4={new.key: 2.345}), tmp_path / "reports")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quant.report.figures.draw_all", lambda *_: None)
    monkeypatch.setattr("quant.pipeline.run", lambda stage: stage())
    runpy.run_module("stages.plot")
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "reports" / "variants.csv").open())}
    assert rows["nf4"][new.key] == "2.35" and rows["base"][new.key] == "1.0"
    assert read_json(tmp_path / "reports" / "metrics" / "nf4.json")[new.key] == 2.35
    assert len(read_json(tmp_path / "reports" / "metrics" / "base.json")) == 8, "seven, and the new one"
    text = render_markdown(read_run(PARAMS, tmp_path / "reports"), CORPUS, MODEL)
    assert "| J / token |" in text and any(line.startswith("| nf4 |") and line.endswith("| 2.3 |") for line in text.splitlines())
    assert "| J / token |" in readme.results_table(tmp_path) and "energy of decoding a token" in readme.metrics_table()
    assert new in shown_in(SWEEP)


def test_results_that_lack_a_metric_say_how_to_get_it(monkeypatch, tmp_path):
    write_results(made_up(), tmp_path)
    monkeypatch.setitem(METRICS, "new", dataclasses.replace(METRICS["ppl"], key="new"))
    with pytest.raises(InputError, match="base lack new; run dvc repro"):
        read_run(PARAMS, tmp_path)
    with pytest.raises(InputError, match=r"base\.json is missing; run dvc repro"):
        read_run(PARAMS, tmp_path / "none")


def test_the_readme_shows_the_committed_metrics():
    text = (ROOT / "README.md").read_text()
    for name, table in readme.tables_of(ROOT).items():
        assert readme.section(name).search(text).group() == table, "run make readme"


def test_a_study_of_gguf_files_is_a_table_with_a_line_for_each_type(tmp_path):
    assert "--write reports/gguf.json" in readme.gguf_table(tmp_path)

    def row(kind, codes, kld, own, size=1000):
        return {"type": kind, "codes": codes, "bytes": size, "kld_mnats": kld, "in_llama_cpp": own}

    rows = [row("Q4_0", "llama.cpp", 2.0, 2.5), row("Q4_0", "ours", 0.5, 0.75), row("4.5", "ours", 1.0, None, 900)]
    keep(tmp_path / "reports" / "gguf.json", "tiny", {"rows": rows})
    lines = readme.gguf_table(tmp_path).splitlines()
    assert lines[2:] == ["| `tiny` | Q4_0 | 1,000 | 2.00 (2.50) |  | 0.50 (0.75) |", "| `tiny` | 4.5 | 900 |  |  | 1.00 |"]


def test_a_study_of_precisions_is_a_table_with_a_line_for_each_variant(tmp_path):
    assert "--write reports/precision.json" in readme.precision_table(tmp_path)
    rows = [{"variant": name, "precision": precision, "kld_mnats": kld, "from_exact_mnats": added, "ppl": 9.0}
            for name, precision, kld, added in (("int8", "exact", 0.0625, 0.0), ("int8", "int8", 0.15, 0.0875))]
    write_json(tmp_path / "reports" / "precision.json", {"windows": None, "rows": rows})
    assert readme.precision_table(tmp_path).splitlines() == [
        "| variant | exact | int8 |", "|:--|--:|--:|", "| `int8` | 0.062 | 0.150 (0.087) |"]


def test_a_readme_without_the_marks_is_refused(tmp_path, monkeypatch):
    for path in ("params.yaml", "reports", "models"):
        (tmp_path / path).symlink_to(ROOT / path)
    (tmp_path / "README.md").write_text("<!-- results -->\n<!-- /results -->\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"0 sections <!-- ptb -->"):
        readme.main([])
    assert (tmp_path / "README.md").read_text() == "<!-- results -->\n<!-- /results -->\n", "nothing is written"
    with pytest.raises(InputError, match="unrecognized arguments: x"):
        readme.main(["x"])
