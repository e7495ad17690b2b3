"""The first screen recommends what the data supports, and says how sure that is; so does the chapter on several models."""

import pytest
from made_up import CORPUS, MODEL, PARAMS, made_up, with_rows

from quant.report import family
from quant.report.answer import BEYOND, SCALE, answer_lines, answer_table, choices, in_words
from quant.report.document import render_markdown
from quant.report.figures import figures_of
from quant.report.tables import mib_in_16_bits

FULL = 50.0  # MiB of the made-up model's weights in 16 bits


def chosen(params=PARAMS, **changes):
    """The choice for each purpose, by its first word."""
    return {choice.purpose.split()[0] + choice.purpose.split()[1]: choice for choice in choices(made_up(params, **changes))}


def everyone(**metrics):
    return {name.replace("-", "_"): metrics for name in PARAMS["variants"]}


def test_a_budget_is_a_share_of_the_16_bit_weights():
    run = made_up()
    assert mib_in_16_bits(run.base) == FULL
    assert [choice.purpose for choice in choices(run)][:3] == [
        "half of 16 bits (25.00 MiB)", "a quarter of 16 bits (12.50 MiB)", "a sixth of 16 bits (8.33 MiB)"]


@pytest.mark.parametrize(("changes", "name", "words"), [
    ({}, None, "no variant is this small"),
    ({"nf4": {"weights_mib": 20.0}}, "nf4", "the only variant that fits"),
    ({"nf4": {"weights_mib": 20.0, "kld_mnats": 2.0}, "int4": {"weights_mib": 9.0, "kld_mnats": 3.0}}, "nf4",
     "significantly closer to base than the other one that fits"),
    ({"nf4": {"weights_mib": 20.0, "decode_speedup": 2.0}, "int4": {"weights_mib": 20.0, "decode_speedup": 5.0}}, "int4",
     "as close to base as `nf4`; the fastest of them"),
    ({"nf4": {"weights_mib": 20.0, "noisy": True}, "int4": {"weights_mib": 19.0, "noisy": True}}, "int4", "the smallest of them"),
], ids=["none", "one", "closest", "alike: the fastest", "alike, no timing: the smallest"])  # fmt: skip
def test_the_closest_that_fits_is_taken(changes, name, words):
    choice = chosen(**changes)["halfof"]
    assert (choice.result and choice.result.name) == name and words in choice.certainty


def test_each_use_has_its_variant():
    found = chosen(nf4={"weights_mib": 20.0, "kld_mnats": 0.2},
                   int4={"weights_mib": 9.0, "ppl_change_pct": 0.5, "kld_mnats": 4.0},
                   fp4={"weights_mib": 5.0, "ppl_change_pct": 5.0, "decode_speedup": 9.0}, whole={"decode_speedup": 3.0})
    assert [found[key].result.name for key in ("accuracyfirst,", "fastestwithin", "smallestwithin")] == ["nf4", "whole", "int4"]
    assert found["fastestwithin"].certainty == "3.00 times base's speed; clearly faster than all others"


def test_a_scattered_timing_recommends_nothing():
    found = chosen(**everyone(noisy=True, decode_speedup=5.0))
    assert found["fastestwithin"].result is None
    row = next(line for line in answer_table(made_up(**everyone(noisy=True))).splitlines() if line.startswith("| smallest"))
    assert "not reliable" in row


def test_a_variant_that_was_not_timed_shows_the_speed_of_its_layout():
    row = {"method": "quant", "include": ["*"], "fit": "mse", "benchmark": False}
    run = made_up(with_rows({"clip": row}), clip={"weights_mib": 5.0}, whole={"decode_ms_per_token": 2.0})
    assert "(as `whole`)" in answer_table(run) and "500" in answer_table(run)


def test_words_for_a_divergence_grow_with_it():
    words = [in_words(value) for value in (0.1, *(limit + 0.1 for limit in SCALE))]
    assert words == [*SCALE.values(), BEYOND]


def test_the_lines_for_a_terminal_are_few():
    lines = answer_lines(made_up())
    assert len(lines) == 7 and all("`" not in line and len(line) < 140 for line in lines)


@pytest.mark.parametrize(("small", "verdict"), [
    ({"weights_mib": 20.0}, "better"),  # than the relative, which is worse by a tenth
    ({"weights_mib": 20.0, "ppl_change_pct": 50.0}, "worse"),
    ({}, "too large"),
])  # fmt: skip
def test_a_larger_model_is_compared_with_a_smaller_one_of_equal_bytes(small, verdict):
    run = made_up(nf4=small)
    (match,) = family.matches(run)
    assert match.verdict == verdict and match.smaller.name == "small"
    text = render_markdown(run, CORPUS, MODEL).partition("## Which model at which bits")[2].partition("\n## ")[0]
    said = {"better": "The larger model wins", "worse": "The smaller model wins", "too large": "No measured variant"}[verdict]
    assert said in text and "`int4` does not fit `small`: groups of 64 do not divide 100." in text


def test_without_other_models_the_chapter_says_how_to_add_one():
    params = PARAMS | {"family": {"variants": [], "models": {}}}
    text = render_markdown(made_up(params), CORPUS, MODEL)
    assert "The section `family` of params.yaml takes more" in text and "figures/family" not in text


def test_other_models_may_be_measured_without_a_row():
    run = made_up(PARAMS | {"family": {"variants": [], "models": {"small": {"source": "x"}}}})
    (caption,) = [figure.caption(run) for figure in figures_of(run) if figure.name == "family"]
    assert "each model unquantized, with 95 % intervals" in caption


def test_the_report_begins_with_the_answer():
    text = render_markdown(made_up(), CORPUS, MODEL)
    assert text.index("## Which variant to take") < text.index("figures/size-divergence.svg") < text.index("## Findings")
