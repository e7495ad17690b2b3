"""The whole default pipeline, once."""

import json

import pytest
from conftest import ROOT
from dvc_project import Project

pytestmark = pytest.mark.slow


def test_the_default_pipeline(tmp_path_factory):
    """What `make repro` makes, from nothing, and that it is what this repository says it is; timed less often."""
    timed = {"prompts": [16], "tokens": 4, "rounds": 1, "threads": 2}
    project = Project(tmp_path_factory.mktemp("default"), {"benchmark": timed})
    project.dvc("repro")
    metrics = project.metrics()
    assert set(metrics) == {path.stem for path in (ROOT / "reports" / "metrics").glob("*.json")}
    corpus = json.loads((project.folder / "data" / "eval" / "corpus.json").read_text())
    floor = 2.718281828459045 ** (corpus["floor_nats"] / corpus["words"])
    assert floor < metrics["base"]["ppl_word"] < 1.05 * floor, "above the grammar's exact perplexity, and near it"
    assert metrics["gguf-f16"]["ppl"] == pytest.approx(metrics["base"]["ppl"], rel=1e-3)
    assert metrics["nf4"]["ppl"] == pytest.approx(metrics["bnb-nf4"]["ppl"], rel=1e-3), "one format, twice"  # where a
    # processor has bfloat16, bitsandbytes multiplies in it, and the two differ by that
    for name, committed in ((path.stem, json.loads(path.read_text())) for path in (ROOT / "reports" / "metrics").glob("*.json")):
        for key, within in (("ppl", 1e-3), ("bits_per_weight", 0.03)):  # bitsandbytes holds its scales as the processor likes
            assert metrics[name][key] == pytest.approx(committed[key], rel=within), (name, key)
    assert project.stages_run("repro") == set()
