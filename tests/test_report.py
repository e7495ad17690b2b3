"""The report says what the data says: with opposite data, the opposite."""

import pytest

from quant.report.figures import FIGURES, draw_all, pareto_front
from quant.report.findings import findings
from quant.report.results import METRICS, Result
from quant.variants import variants


def made_up(**changes):
    """Results of every default variant; changes: variant -> metrics that differ from base's."""
    params = {"recipes": dict.fromkeys(("whole", "selective", "int4", "nf4", "fp4")), "bnb": {"nf4": 0}, "gguf": {"f16": 0}}
    base = dict.fromkeys(METRICS, 1.0) | {"ppl": 20.0, "ppl_change_pct": 0.0, "weights_mib": 100.0, "bits_per_weight": 32.0}
    timing = {phase: {"ms": {"median": 1.0, "mad": 0.1, "p90": 1.2, "raw": [1.0]}} for phase in ("prefill", "decode")}
    return [
        Result(variant, base | changes.get(variant.name.replace("-", "_"), {}), {"held_bytes": {"float32": 100}},
               {"timing": timing})
        for variant in variants(params)
    ]


def text(**changes):
    return "\n".join(findings(made_up(**changes)))


def test_the_smallest_within_reach_is_named():
    small = {"weights_mib": 10.0, "ppl_change_pct": 0.5}
    assert "within 1 % of the base's perplexity: `whole`" in text(whole=small)
    assert "`whole`**, 10.00" not in text(whole=small | {"ppl_change_pct": 3.0})
    lost = {v.name.replace("-", "_"): {"ppl_change_pct": 5.0} for v in (r.variant for r in made_up())}
    assert "No variant stays within 1 %" in text(**lost | {"base": {}})


def test_the_fastest_is_named_only_where_one_is_faster():
    assert "Fastest: `nf4`**, which decodes at 3.00 times" in text(nf4={"decode_speedup": 3.0})
    slow = {v.name.replace("-", "_"): {"decode_speedup": 0.5} for v in (r.variant for r in made_up())}
    assert "No variant decodes faster than base here" in text(**slow)


def test_nonlinear_and_linear_are_ordered_by_the_data():
    def order(**divergence):
        found = text(**{name: {"weights_mib": 20.0, "kld_mnats": value} for name, value in divergence.items()})
        (line,) = [line for line in found.splitlines() if "Nonlinear against linear" in line]
        return sorted(divergence, key=lambda name: line.index(f"`{name}`"))

    assert order(nf4=1.0, int4=2.0, fp4=3.0) == ["nf4", "int4", "fp4"]
    assert order(nf4=3.0, int4=1.0, fp4=2.0) == ["int4", "fp4", "nf4"]


def test_grids_of_unequal_size_are_not_compared():
    sizes = {"int4": {"weights_mib": 19.0}, "nf4": {"weights_mib": 20.0}, "fp4": {"weights_mib": 20.0}}
    assert "Nonlinear against linear" not in text(**sizes)


def test_runtimes_that_disagree_are_told():
    assert "base agree:" in text(gguf_f16={"ppl_change_pct": 0.05})
    assert "base **do not agree**:" in text(gguf_f16={"ppl_change_pct": 0.5})


def test_the_front_is_what_nothing_beats():
    assert pareto_front([(1, 9), (2, 5), (3, 6), (4, 1), (4, 0.5)]) == [0, 1, 4]


def test_every_figure_is_drawn_the_same_twice(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_all(made_up(whole={"weights_mib": 30.0, "ppl": 21.0}), tmp_path / name)
    for figure in FIGURES:
        for kind in ("svg", "png"):
            one, two = ((tmp_path / name / f"{figure.name}.{kind}").read_bytes() for name in ("one", "two"))
            assert one == two and len(one) > 1000


@pytest.mark.parametrize("name", ["base", "bf16", "converted", "embedded", "bnb-nf4"])
def test_a_recipe_can_not_take_a_name_that_is_taken(name):
    from quant.errors import InputError

    with pytest.raises(InputError, match="name is taken"):
        variants({"recipes": {name: {}}, "bnb": {"nf4": {}}, "gguf": {}})


def test_the_readme_shows_the_committed_metrics():
    from conftest import ROOT

    from quant.report.readme import SECTION, results_table

    assert SECTION.search((ROOT / "README.md").read_text()).group() == results_table(ROOT), "run make readme"
