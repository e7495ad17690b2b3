"""The report says what the data says: with opposite data, the opposite."""

import copy

import pytest
from made_up import CORPUS, MODEL, PARAMS, made_up

from quant.report import tables
from quant.report.comparable import equal_but_for_the_grid, equal_but_for_the_selection, nominal_bits, same_format
from quant.report.document import render_markdown
from quant.report.figures import figures_of
from quant.report.findings import findings, order_by
from quant.report.results import METRICS, rounded
from quant.report.tables import table
from quant.variants import variants


def finding(start, params=PARAMS, **changes):
    """The one finding that begins so."""
    (line,) = [line for line in findings(made_up(params, **changes)) if line.startswith(f"**{start}")]
    return line


def everyone(**metrics):
    """The same change for every variant but base."""
    return {name.replace("-", "_"): metrics for name in (v.name for v in variants(PARAMS)) if name != "base"}


def test_the_smallest_within_reach_is_named():
    small = {"weights_mib": 10.0, "ppl_change_pct": 0.5}
    assert "perplexity: `whole`**, 10.00 MiB of weights, 10.0 times smaller" in finding("Smallest within 1 %", whole=small)
    assert "`whole`" not in finding("Smallest within 1 %", whole=small | {"ppl_change_pct": 3.0})
    assert "`nf4`**, 20.00" in finding("Smallest within 1 %", whole=small | {"ppl_change_pct": 3.0}, nf4={"weights_mib": 20.0})


def test_what_may_exceed_one_per_cent_is_not_within_it():
    unsure = {"weights_mib": 10.0, "ppl_change_pct": 0.9, "noise": 2.0}
    assert "`whole`" not in finding("Smallest within 1 %", whole=unsure)
    assert "`whole`" in finding("Smallest within 1 %", whole=unsure | {"noise": 0.01})
    assert "`fp4`" in finding("No variant is within 1 %", **everyone(ppl_change_pct=5.0) | {"fp4": {"ppl_change_pct": 4.0}})


def test_the_fastest_is_named_only_where_one_is_faster():
    assert "`nf4`**, which decodes at 3.00 times" in finding("Fastest", nf4={"decode_speedup": 3.0})
    assert "`nf4`" in finding("No variant decodes faster", **everyone(decode_speedup=0.5) | {"nf4": {"decode_speedup": 0.6}})
    assert findings(made_up())[1].startswith("**No variant decodes faster"), "rounds on both sides of 1 prove nothing"


def test_overlapping_rounds_are_not_ranked_and_noise_is_told():
    close = {"nf4": {"decode_speedup": 3.0}, "int4": {"decode_speedup": 2.95}}
    assert "Fastest: `nf4` and `int4`**, which decode at 3.00 and 2.95 times" in finding("Fastest", **close)
    assert "overlap" not in finding("Fastest", nf4={"decode_speedup": 3.0}, int4={"decode_speedup": 2.0})
    assert "scattered" in finding("Fastest", nf4={"decode_speedup": 9.0, "noisy": True})
    assert "scattered" not in finding("Fastest", nf4={"decode_speedup": 9.0})


def test_the_best_at_four_bits_turns_with_the_data():
    def first(**divergences):
        return finding("Best at 4 bits", **{name: {"kld_mnats": value} for name, value in divergences.items()})

    assert first(nf4=1.0, int4=2.0, fp4=3.0, bnb_nf4=4.0, gguf_q4_0=5.0).startswith("**Best at 4 bits: `nf4`**, divergence 1.000")
    assert first(nf4=5.0, int4=4.0, fp4=3.0, bnb_nf4=2.0, gguf_q4_0=1.0).startswith("**Best at 4 bits: `gguf-q4_0`**")


def test_equals_at_four_bits_are_not_ranked():
    unsure = {"nf4": {"kld_mnats": 1.0, "noise": 1.0}, "int4": {"kld_mnats": 1.01, "noise": 1.0},
              **{name: {"kld_mnats": 9.0} for name in ("fp4", "bnb_nf4", "gguf_q4_0")}}
    said = finding("Best at 4 bits", **unsure)
    assert said.startswith("**Best at 4 bits: `")
    assert "**, which this text does not put in order (divergence 1.000 to 1.010 mnat)" in said
    assert {"`int4`", "`nf4`"} == set(said.partition("**,")[0].removeprefix("**Best at 4 bits: ").split(" and "))
    assert "All of them are closer to base than `" in said and "`fp4`" in said.partition("closer")[2]
    assert "the smallest of them: `int4`, 7.00 MiB" in finding("Best at 4 bits", **unsure | {
        "int4": unsure["int4"] | {"weights_mib": 7.0}})


def test_nonlinear_and_linear_turn_with_the_data():
    def verdict(**changes):
        sizes = {name: {"weights_mib": 20.0} | changes.get(name, {}) for name in ("int4", "nf4", "fp4")}
        return finding("Nonlinear against linear", **sizes)

    better = {"kld_mnats": 0.1, "ppl_change_pct": -1.0}
    assert "Compared with `int4`, `nf4` is better by divergence and better by perplexity" in verdict(nf4=better)
    assert "Compared with `int4`, `nf4` is worse by divergence and worse by perplexity" in verdict(int4=better)
    assert "`nf4` is not different for certain by divergence and not" in verdict(nf4={"noise": 1.0}, int4={"noise": 1.0})


def test_grids_of_unequal_size_are_not_compared():
    sizes = {"int4": {"weights_mib": 19.0}, "nf4": {"weights_mib": 20.0}, "fp4": {"weights_mib": 21.0}}
    assert not [line for line in findings(made_up(**sizes)) if "Nonlinear" in line]
    assert "grids" not in {figure.name for figure in figures_of(made_up(**sizes))}
    assert "grids" in {figure.name for figure in figures_of(made_up())}


def test_smaller_is_called_slower_only_where_it_is():
    small = {"weights_mib": 50.0}
    assert "1 decode slower (`whole`) and 1 faster (`nf4`)" in finding(
        "Smaller is not faster", whole=small | {"decode_speedup": 0.3}, nf4=small | {"decode_speedup": 3.0})
    slow = {"whole": small | {"decode_speedup": 0.3}}
    assert "Reading base's weights at the speed of memory would take 25 %" in finding("Smaller is not faster", **slow)
    assert "Reading base's" not in finding("Smaller is not faster", base={"gb_per_s": 15.0}, **slow)
    assert "none decodes slower" in finding("Smaller is not slower", nf4=small | {"decode_speedup": 3.0})


def test_runtimes_that_disagree_are_told():
    assert "`gguf-f16` agrees with base" in finding("One scorer", gguf_f16={"ppl_change_pct": 0.05})
    assert "`gguf-f16` **does not agree** with base" in finding("One scorer", gguf_f16={"ppl_change_pct": 0.5})


def test_two_implementations_are_different_only_for_real():
    assert "no real difference" in finding("One format", nf4={"noise": 1.0}, bnb_nf4={"noise": 1.0})
    assert "a real difference" in finding("One format", bnb_nf4={"ppl_change_pct": 2.0})


def test_changes_that_are_not_real_are_listed():
    everyone_changed = everyone(ppl_change_pct=1.0)
    assert finding("Every change of perplexity is real", **everyone_changed)
    unsure = everyone_changed | {"fp4": {"noise": 1.0}}
    assert "whether `fp4` raises it or lowers it" in finding("What perplexity can't tell", **unsure)


def test_the_finer_measure_is_the_one_that_tells_more_apart():
    by_divergence = {name: {"kld_mnats": 1.0 + i} for i, name in enumerate(everyone())}
    assert "Divergence, which compares whole distributions, is the finer measure: of 36 pairs of variants it tells 36 apart" in \
        finding("What perplexity can't tell", **by_divergence)
    by_perplexity = {name: {"ppl_change_pct": 1.0 * i} for i, name in enumerate(everyone())}
    said = finding("What perplexity can't tell", **by_perplexity)
    assert "Of 36 pairs of variants perplexity tells 36 apart, divergence " in said


def test_nothing_is_ranked_within_a_tier():
    changes = {"nf4": {"kld_mnats": 3.0, "noise": 1.0}, "int4": {"kld_mnats": 3.01, "noise": 1.0}, "fp4": {"kld_mnats": 9.0}}
    tiers = order_by(made_up(**changes), "kld")
    assert tiers[-1] == ["fp4"] and {"nf4", "int4"} == set(tiers[-2])
    assert not any("base" in tier for tier in tiers), "base's divergence from itself is no result"
    assert order_by(made_up(**changes), "ppl")[0].count("base") == 1


def test_what_perplexity_can_not_rank_is_said_and_what_it_can_is_listed():
    def section(**changes):
        text = render_markdown(made_up(**changes), CORPUS, MODEL)
        return text.partition("### What can be ranked")[2].partition("\n### ")[0]

    alike = {name: {"noise": 1.0, "kld_mnats": 1.0 + 5 * i} for i, name in enumerate(everyone())}
    assert "By perplexity there is one tier only" in section(**alike)
    apart = section(**everyone(ppl_change_pct=1.0) | {"fp4": {"ppl_change_pct": 9.0, "weights_mib": 3.0}})
    assert "By perplexity, the lowest first" in apart and "| 3 | `fp4` | +9.000 | 3.00 |" in apart


def test_a_recipe_that_departs_from_the_plain_rule_is_told():
    assert "In `nf4`" not in render_markdown(made_up(), CORPUS, MODEL)
    params = copy.deepcopy(PARAMS)
    params["recipes"]["nf4"]["double_quant"] = True
    params["recipes"]["int4"] |= {"symmetric": False, "fit": "hqq"}
    text = render_markdown(made_up(params), CORPUS, MODEL)
    assert "In `nf4` the scales are stored in 8 bits" in text and "In `int4` each group stores its lowest value as well" in text
    assert "In `int4` scales come from another rule" in text


def test_memory_of_a_gpu_is_told_where_there_is_one():
    assert "GPU" not in tables.memory(made_up())
    cuda = {"allocated_mib": 31.0, "load_peak_mib": 32.0, "generate_peak_mib": 33.0}
    lines = tables.memory(made_up(nf4={"cuda": cuda})).splitlines()
    assert lines[0].endswith("| GPU loading MiB | GPU generating MiB | GPU allocated MiB |")
    (line,) = [line for line in lines if line.startswith("| nf4 |")]
    assert line.endswith("| 32 | 33 | 31 |")


def test_gguf_files_are_listed_by_what_they_hold():
    lines = tables.gguf(made_up()).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| base", "| gguf-f16", "| gguf-q4_0"]
    assert tables.gguf(made_up(PARAMS | {"gguf": {}})) == ""


def test_which_variants_compare_comes_from_the_parameters():
    assert equal_but_for_the_grid(PARAMS) == [["int4", "nf4", "fp4"]]
    assert equal_but_for_the_selection(PARAMS) == [["whole", "selective"]]
    assert same_format(PARAMS) == [("nf4", "bnb-nf4")]
    assert [nominal_bits(name, PARAMS) for name in ("base", "whole", "int4", "bnb-nf4", "gguf-q4_0", "gguf-f16")] == \
        [None, 8, 4, 4, 4, None]
    other = copy.deepcopy(PARAMS)
    other["recipes"]["nf4"]["group_size"] = 32
    assert equal_but_for_the_grid(other) == [["int4", "fp4"]] and same_format(other) == []
    double = copy.deepcopy(PARAMS)
    double["bnb"]["nf4"]["double_quant"] = True
    assert same_format(double) == []
    double["recipes"]["nf4"]["double_quant"] = True
    assert same_format(double) == [("nf4", "bnb-nf4")]


def test_a_grid_that_a_recipe_spells_out_takes_part():
    params = copy.deepcopy(PARAMS)
    params["recipes"]["own"] = {**params["recipes"]["nf4"], "codebook": [value / 7 for value in range(-7, 8)]}
    run = made_up(params, own={"kld_mnats": 0.1})
    assert "`own` is better by divergence" in "".join(findings(run))
    (figure,) = [figure for figure in figures_of(run) if figure.name == "grids"]
    assert [label.get_text() for label in figure.draw(run).axes[0].get_xticklabels()] == ["int4", "nf4", "fp4", "own"]


def test_few_lines_are_warned_of():
    assert "Few lines" not in render_markdown(made_up(), CORPUS, MODEL)
    assert "**Few lines.** 2,999 lines" in render_markdown(made_up(), CORPUS | {"sentences": 2999}, MODEL)


def test_what_was_skipped_is_told_with_its_reason():
    def section(params=PARAMS, **changes):
        text = render_markdown(made_up(params, **changes), CORPUS, MODEL)
        return text.partition("## What was skipped")[2].partition("\n## ")[0]

    said = section()
    assert "Prefill of 512 tokens" in said and "llama.cpp" not in said and "groups of 128" in said
    assert "Of llama.cpp, nothing: the section `gguf`" in section(PARAMS | {"gguf": {}})
    assert "trustworthy" not in said and "trustworthy time of `nf4`" in section(nf4={"noisy": True})


def test_what_a_model_wrote_is_never_markup():
    text = render_markdown(made_up(nf4={"text": "the same <b>words</b> | and\n# `more`"}), CORPUS, MODEL)
    (row,) = [line for line in text.splitlines() if line.startswith("| nf4 | the same")]
    assert row == r"| nf4 | the same *\<b\>words\<\/b\> \| and \# \`more\`* |"
    assert "| fp4 | as base |" in text


def test_a_run_of_one_section_reports_too():
    params = PARAMS | {"recipes": {"whole": {"include": ["*"]}}, "bnb": {}, "gguf": {}}
    text = render_markdown(made_up(params), CORPUS, MODEL)
    assert "Best at 4 bits" not in text and "Nonlinear against linear" not in text and "figures/grids" not in text


def test_the_document_in_three_forms(made_up_report):
    folder, run = made_up_report
    html = (folder / "report.html").read_text()
    assert html.count("data:image/svg+xml;base64,") == len(figures_of(run)) and "figures/" not in html
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "report.html", "report.md", "report.pdf"]
    assert (folder / "report.md").read_text() == render_markdown(run, CORPUS, MODEL)


def test_metrics_have_the_decimals_that_are_worth_reading():
    values = rounded(dict.fromkeys(METRICS, -0.00000123456) | {"ppl": 7.838765})
    assert values["ppl"] == 7.8388 and str(values["kld_mnats"]) == "0.0"
    assert list(values) == list(METRICS)


@pytest.mark.parametrize("name", ["base", "bf16", "converted", "embedded", "bnb-nf4"])
def test_a_recipe_can_not_take_a_name_that_is_taken(name):
    from quant.errors import InputError

    with pytest.raises(InputError, match="name is taken"):
        variants({"recipes": {name: {}}, "bnb": {"nf4": {}}, "gguf": {}})


def test_the_readme_shows_the_committed_metrics():
    from conftest import ROOT

    from quant.report.readme import results_table, section, speed_tables

    text = (ROOT / "README.md").read_text()
    assert section("results").search(text).group() == results_table(ROOT), "run make readme"
    assert section("speed").search(text).group() == speed_tables(ROOT), "run make readme"


def test_a_table_has_a_cell_for_every_heading():
    for columns in (tables.QUALITY, tables.DIVERGENCE, tables.SPEED, tables.MEMORY):
        lines = table(made_up().results, columns).splitlines()
        assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + len(made_up().results)
