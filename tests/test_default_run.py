"""The whole default pipeline, once."""

import json

import pytest
import yaml
from conftest import ROOT
from dvc_project import Project

pytestmark = pytest.mark.slow


def test_the_default_pipeline(tmp_path_factory):
    """What `make repro` makes, from nothing, and that it is what this repository says it is; few variants are timed."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    rows = {name: row | {"benchmark": name in ("whole", "bnb-nf4", "gguf-q4_0")} for name, row in params["variants"].items()}
    plan = {"prompts": [16], "tokens": 4, "rounds": 1, "threads": 2, "wait": 0}
    project = Project(tmp_path_factory.mktemp("default"), {"benchmark": plan, "variants": rows})
    said = project.run("quant.jobs", "2")
    metrics = project.metrics()
    assert set(metrics) == {path.stem for path in (ROOT / "reports" / "metrics").glob("*.json")}
    assert metrics["gguf-f16"]["ppl"] == pytest.approx(metrics["base"]["ppl"], rel=1e-3)
    assert metrics["nf4"]["ppl"] == pytest.approx(metrics["bnb-nf4"]["ppl"], rel=1e-3), "one format, twice"  # where a
    # processor has bfloat16, bitsandbytes multiplies in it, and the two differ by that
    for name, committed in ((path.stem, json.loads(path.read_text())) for path in (ROOT / "reports" / "metrics").glob("*.json")):
        is_calibrated = rows.get(name, {}).get("method") == "calibrated"  # codes follow sums whose order the processor chooses
        for key, within in (("ppl", 5e-3 if is_calibrated else 1e-3), ("bits_per_weight", 0.03)):  # bitsandbytes holds its scales
            # as the processor likes
            assert metrics[name][key] == pytest.approx(committed[key], rel=within), (name, key)
    assert [metrics[f"rtn{bits}"]["kld_mnats"] for bits in (8, 6, 5, 4, 3, 2)] == sorted(
        metrics[f"rtn{bits}"]["kld_mnats"] for bits in (8, 6, 5, 4, 3, 2)), "the curve rises with every bit less"
    family = json.loads((project.folder / "reports" / "studies" / "family" / "small.json").read_text())
    assert family["rows"][0]["bits_per_byte"] > metrics["base"]["bits_per_byte"], "the smaller model is the worse one"
    trained = json.loads((ROOT / "models" / "embedded" / "training.json").read_text())
    assert metrics["base"]["ppl"] == pytest.approx(trained["test"]["perplexity"], rel=1e-3)
    end = said[said.rindex("Running stage 'report'") :]
    assert "smallest within 1 % of perplexity" in end and "reports/report.html" in end and "Warning" not in said
    assert project.stages_run("repro") == set()
