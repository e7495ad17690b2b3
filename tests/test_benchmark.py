"""The stages that measure, on a tiny model: what they need first, and what they keep to themselves."""

import json
import shutil

import pytest
import yaml
from conftest import ROOT, run_stage

from quant.text.corpus import Corpus, write_corpus

LINES = ("the silverware of the lighthouse keeper rose N %", "<unk> said the harbour was closed") * 20


@pytest.fixture
def workspace(tmp_path, runtimes):
    """A tiny model in models/base, made-up lines that claim to be the Penn Treebank's in data/eval, short measurements."""
    for name in ("stages", "quant"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["benchmark"] = {"prompts": [8, 512], "tokens": 4, "rounds": 1, "threads": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(runtimes["base"], tmp_path / "models" / "base")
    write_corpus(Corpus("ptb", LINES), tmp_path / "data" / "eval")
    return tmp_path


def test_the_text_of_the_penn_treebank_stays_out_of_what_is_written(workspace):
    done = run_stage("benchmark", "bf16", cwd=workspace)
    assert done.returncode == 0, done.stderr
    written = (workspace / "reports" / "speed" / "bf16.json").read_text()
    found = json.loads(written)
    assert found["generation"]["prompt"] is None and "silverware" not in written
    assert found["timing"]["prefill_long"]["prompt_tokens"] == 64 and found["timing"]["prefill_long"]["asked_tokens"] == 512
    assert found["clock"]["torch_threads"] == 1
    memory = found["memory"]
    assert memory["interpreter_mib"] > 150 and 5 < memory["load_peak_mib"] < 60, "libraries are no part of the model's memory"


def test_base_comes_first(workspace):
    done = run_stage("evaluate", "bf16", cwd=workspace)
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "error: evaluate bf16: data/reference does not exist; evaluate base first, or run dvc repro, which does"
    ]
