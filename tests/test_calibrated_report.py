"""Calibrated variants in the report: figures, captions, tables and chapter come from the run's data, where it has any."""

import pytest
from made_up import CORPUS, MODEL, PARAMS, made_up, with_rows

from quant.report import calibration
from quant.report.answer import answer_table
from quant.report.comparable import equal_but_for_the_grid, equal_but_for_the_selection, equal_layout, same_format
from quant.report.document import render_markdown, write_report
from quant.report.figures import draw_all, figures_of
from quant.report.findings import findings

LINEAR = {"method": "calibrated", "include": ["attention", "mlp"], "bits": 4, "group_size": 64}
ROWS = {"cal-nf4": LINEAR | {"codebook": "nf4"}, "cal-int3": LINEAR | {"bits": 3, "fit": "mse", "benchmark": False},
        "mix4": {"method": "calibrated", "budget": 4.0, "group_size": 64},
        "mix3": {"method": "calibrated", "budget": 3.0, "group_size": 64, "benchmark": False}}
OURS = {"error-feedback", "bits-by-part", "predicted"}
TEXT = {"source": "austen", "split": "Emma, chapters 1 to 14", "windows": 128, "length": 256}


def example(feedback=(0.2, -0.1, 0.0), weight_pct=(12.0, 16.0), output_pct=(9.0, 4.0), scheme="int3 g64 full fp16 mse"):
    return {"module": "h.0.attn.q", "row": 0, "scheme": scheme, "weights": [0.12, -0.08, 0.05],
            "nearest": [0.1, -0.1, 0.1], "feedback": list(feedback),
            "weight_error_pct": dict(zip(("nearest", "feedback"), weight_pct, strict=True)),
            "output_error_pct": dict(zip(("nearest", "feedback"), output_pct, strict=True))}


def allocation(predicted, *widths):
    """Two blocks of two matrices, three classes of the embedding's rows and the positions; widths in that order."""
    names = [f"h.{block}.{module}" for block in (0, 1) for module in ("attn.q_k_v", "mlp.up")]
    names += [*(f"model.wte.class{i}" for i in range(3)), "model.wpe"]
    roles = [["q", "k", "v"], ["up"], ["q", "k", "v"], ["up"], *[["embedding"]] * 4]
    blocks = [0, 0, 1, 1, None, None, None, None]
    parts = [{"name": name, "roles": role, "block": block, "weights": 1000, "bits": bits, "scheme": f"int{bits} g64",
              "predicted_kld_mnats": None if predicted is None else predicted / len(names)}
             for name, role, block, bits in zip(names, roles, blocks, widths, strict=True)]
    return {"predicted_kld_mnats": predicted, "parts": parts}


def noted(bits=3, **more):
    return {"calibration": TEXT, "example": example(scheme=f"int{bits} g64")} | more


MIX4, MIX3 = allocation(2.0, 3, 4, 3, 4, 8, 5, 2, 6), allocation(8.0, 2, 3, 2, 3, 6, 4, 2, 5)
CHANGES = {
    "base": {}, "nf4": {"kld_mnats": 2.0, "bits_per_weight": 10.0}, "whole": {"kld_mnats": 0.4, "bits_per_weight": 8.2},
    "cal_nf4": {"kld_mnats": 1.5, "bits_per_weight": 10.0, "noted": noted(4)},
    "cal_int3": {"kld_mnats": 3.0, "bits_per_weight": 9.0, "noted": noted()},
    "mix4": {"kld_mnats": 1.0, "bits_per_weight": 4.0, "noted": noted(allocation=MIX4), "weights_mib": 12.0},
    "mix3": {"kld_mnats": 6.0, "bits_per_weight": 3.0, "noted": noted(allocation=MIX3), "weights_mib": 9.0},
}


def run_with(rows=None, **changes):
    return made_up(with_rows(ROWS | (rows or {})), **{name: CHANGES.get(name, {}) | changes.get(name, {})
                                                      for name in {*CHANGES, *changes}})


def chapter(run):
    return render_markdown(run, CORPUS, MODEL).partition("\n## Calibrated\n")[2].partition("\n## ")[0]


def caption(name, run):
    return next(figure for figure in figures_of(run) if figure.name == name).caption(run)


def test_nothing_appears_without_calibrated_variants():
    run = made_up()
    text = render_markdown(run, CORPUS, MODEL)
    assert not OURS & {figure.name for figure in figures_of(run)}
    assert "## Calibrated" not in text and "GPTAQ" not in text and "**GPTQ** [4] is not among them" in text
    assert "every variant here rounds the weights as they are" in text


def test_with_them_the_report_no_longer_says_that_they_are_missing():
    text = render_markdown(run_with(), CORPUS, MODEL)
    assert "is not among them" not in text and "rounds the weights as they are" not in text
    assert "**Calibrated** (`cal-nf4`, `cal-int3`, `mix4` and `mix3`)" in text and "In `mix4` and `mix3` each part" in text
    assert "GPTAQ: Efficient" in text and "AWQ: Activation-aware" in text


def test_the_report_with_them_is_made_in_three_forms(tmp_path):
    run = run_with()
    (tmp_path / "figures").mkdir()
    assert draw_all(run, tmp_path / "figures") == len(figures_of(run))
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} >= OURS
    write_report(run, tmp_path, CORPUS, MODEL)
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/svg+xml;base64,") == len(figures_of(run)) and "What feedback does to one row" in html
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("shown", "parts"), [
    (example(), ["first 3 weights of row 0 of `h.0.attn.q` in `cal-int3`", "leaves 1 of them further",
                 "further from base's, with a relative error of 12.0 % rounded to nearest and 16.0 % by feedback",
                 "yet the layer's outputs on the calibration text are nearer: 9.0 % rounded to nearest and 4.0 % by feedback"]),
    (example(weight_pct=(12.0, 11.0), output_pct=(9.0, 9.5)), ["nearer to base's", "yet the layer's outputs", "further: 9.0 %"]),
    (example(weight_pct=(12.0, 11.0)), ["nearer to base's", "and the layer's outputs", "nearer: 9.0 %"]),
], ids=["as usual", "the opposite", "both nearer"])  # fmt: skip
def test_the_caption_of_feedback_has_the_numbers_of_the_example(shown, parts):
    text = caption("error-feedback", run_with(cal_int3={"noted": {"calibration": TEXT, "example": shown}}))
    assert text.endswith(".") and "  " not in text
    assert [part for part in parts if part not in text] == [], text


def test_the_example_with_the_fewest_bits_is_drawn_and_one_without_feedback_never():
    assert calibration.clearest_example(run_with()).name == "cal-int3", "a budget has many widths"
    plain = {"calibration": TEXT, "example": example(feedback=(0.1, -0.1, 0.1))}
    run = run_with(cal_int3={"noted": plain})
    assert calibration.clearest_example(run).name == "cal-nf4"
    everywhere = {name: {"noted": plain} for name in ("cal_nf4", "cal_int3", "mix4", "mix3")}
    assert "error-feedback" not in {figure.name for figure in figures_of(run_with(**everywhere))}
    assert chapter(run_with(**everywhere))


def test_the_map_has_a_cell_for_every_part():
    found = {(cell.row, cell.column): cell.bits for cell in calibration.cells(MIX4)}
    assert found == {("q+k+v", 0): 3, ("up", 0): 4, ("q+k+v", 1): 3, ("up", 1): 4,
                     ("wte", 0): 8, ("wte", 1): 5, ("wte", 2): 2, ("wpe", None): 6}
    norm = {"name": "h.0.norm", "roles": ["norm"], "block": 0}
    two = [norm | {"weights": 1, "bits": 2}, norm | {"weights": 2, "bits": 5}]
    assert [cell.bits for cell in calibration.cells({"parts": two})] == [4], "parts of one role are averaged by their weights"


def test_the_map_is_drawn_with_its_numbers():
    run = run_with()
    (figure,) = [figure for figure in figures_of(run) if figure.name == "bits-by-part"]
    inside, outside = figure.draw(run).axes[:2]
    assert [text.get_text() for text in inside.texts] == ["3", "3", "4", "4"]
    assert [text.get_text() for text in outside.texts] == ["8", "5", "2", "6"]
    assert [label.get_text() for label in outside.get_yticklabels()] == ["wte", "wpe"]
    text = caption("bits-by-part", run)
    assert "`mix4` has 3.50 bits (3 to 4) in the blocks and 5.25 bits (2 to 8) outside; `mix3` has 2.50" in text, text


def test_a_budget_without_weights_outside_the_blocks_is_drawn_too(tmp_path):
    inside = {"predicted_kld_mnats": 2.0, "parts": MIX4["parts"][:4]}
    run = run_with({"mix3": None}, mix4={"noted": noted(allocation=inside)})
    assert draw_all(run, tmp_path) and "outside" not in caption("bits-by-part", run).partition("`mix4` has")[2]


@pytest.mark.parametrize(("measured", "parts"), [
    ((1.0, 6.0), ["lie below the diagonal", "0.50 to 0.75 times predicted", "is as predicted"]),
    ((4.0, 3.0), ["on both sides of", "0.38 to 2.00 times", "is not as predicted"]),
    ((3.0, 9.0), ["lie above"]),
], ids=["below", "both", "above"])  # fmt: skip
def test_the_caption_of_predictions_compares_them_with_what_was_measured(measured, parts):
    text = caption("predicted", run_with(mix4={"kld_mnats": measured[0]}, mix3={"kld_mnats": measured[1]}))
    assert [part for part in parts if part not in text] == [], text


def test_one_budget_is_told_in_a_sentence():
    run = run_with({"mix3": None})
    assert "predicted" not in {figure.name for figure in figures_of(run)}
    assert "measured is 0.50 times predicted" in chapter(run)


def test_an_allocation_that_was_given_has_no_prediction(tmp_path):
    run = run_with({"mix3": None}, mix4={"noted": noted(allocation=allocation(None, 3, 4, 3, 4, 8, 5, 2, 6))})
    assert "| mix4 | 4.00 | given, not chosen | 1.000 |" in chapter(run) and "times predicted" not in chapter(run)
    assert draw_all(run, tmp_path)


def test_each_variant_stands_beside_an_uncalibrated_one():
    run = run_with()
    beside = {found.result.name: (found.other.name, found.is_alike) for found in calibration.matches(run)}
    assert beside == {"cal-nf4": ("nf4", True), "cal-int3": ("nf4", False), "mix4": ("whole", False), "mix3": ("whole", False)}
    text = chapter(run)
    assert "| cal-nf4 | 10.00 | 1.500 | 1.497 to 1.503 | nf4 | 10.00 | 2.000 | -0.500 (" in text
    assert "| mix4 | 4.00 | 1.000 | 0.997 to 1.003 | whole, the next larger | 8.20 | 0.400 | 0.600 (" in text
    assert "- `cal-nf4` is significantly closer to base than the uncalibrated variant of the same weights and width." in text
    assert "`cal-int3`, `mix4` and `mix3` are significantly further from base than the next larger" in text


def test_a_step_is_worth_what_two_variants_that_differ_in_it_say():
    gptq = ROWS["cal-int3"] | {"targets": "original"}
    run = run_with({"gptq": gptq, "other": gptq | {"sweeps": 0}},
                   gptq=CHANGES["cal_int3"] | {"kld_mnats": 3.5}, other=CHANGES["cal_int3"])
    assert [(step.key, step.one.name, step.other.name, step.verdict) for step in calibration.steps(run)] == [
        ("targets", "cal-int3", "gptq", "better"), ("sweeps", "gptq", "other", "worse")]
    assert ("Only `targets` differs: `corrected` (`cal-int3`) 3.000 mnat, `original` (`gptq`) 3.500 mnat, the first "
            "significantly closer to base.") in chapter(run)
    assert "can't be told" in chapter(run_with()) and "can't be told" not in chapter(run)


def test_rows_that_share_a_recipe_are_no_pair_of_formats_or_selections():
    rows = {"gptq": ROWS["cal-nf4"] | {"targets": "original"}, "blocks": ROWS["cal-nf4"] | {"blocks": [0]},
            "cal-int4": LINEAR}
    run = run_with(rows, gptq={"noted": noted()}, blocks={"noted": noted()}, cal_int4={"noted": noted()})
    found = [equal_but_for_the_grid(run), equal_but_for_the_selection(run)]
    assert [[[r.name for r in group] for group in groups] for groups in found] == [
        [["int4", "nf4", "fp4"], ["cal-nf4", "cal-int4"]], [["whole", "selective"], ["cal-nf4", "blocks"]]]
    assert [[r.name for r in pair] for pair in same_format(run)] == [["nf4", "bnb-nf4"]]


def test_an_untimed_variant_is_as_fast_as_one_of_its_layout():
    run = run_with({"cal-fp4": LINEAR | {"codebook": "fp4", "fit": "range", "benchmark": False}})
    assert equal_layout(run, run["cal-fp4"]).name == "fp4", "the same code opens both"
    assert equal_layout(run, run["mix3"]) is None


def test_variants_without_a_recipe_are_chosen_and_found():
    run = run_with(mix4={"kld_mnats": 0.1, "weights_mib": 9.0})
    assert run["mix4"].recipe is None and "`mix4`" in answer_table(run)
    assert all(finding.text for finding in findings(run))
    assert set(PARAMS["variants"]) < {result.name for result in run.others}
