"""A token is in no byte that is printed or written, whatever goes wrong: on the Hub, in a stage, in a command."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from conftest import ROOT
from hub_server import Fault
from test_hub import CARD, TOKEN, fetch

SAVED = "_".join(("hf", "saved", "by", "login"))
FAULTS = [{"status": 401}, {"status": 403}, {"status": 404}, {"cut_after": 5, "times": 1}]
STAGES = [(f"stages.{path.stem}", *words) for path in sorted((ROOT / "stages").glob("[a-z]*.py"))
          if not path.stem.startswith("train") for words in ((), ("nosuch",))]
COMMANDS = [("quant.check",), ("quant.select",), ("quant.export", "models/nosuch", "out"), ("quant.recover",), ("quant.retry",),
            ("quant.jobs", "many"), ("quant.report.readme",), ("quant.benches.scoring", "nosuch")]


def holders(folder, *tokens):
    """Files of a folder that contain one of the tokens."""
    return [path for path in folder.rglob("*")
            if path.is_file() and any(token.encode() in path.read_bytes() for token in tokens)]


@pytest.mark.slow
def test_a_download_that_fails_at_any_request(hub, hub_client, make_model, tmp_path):
    """Every request of a private model's download is refused in three ways, and cut once."""
    files = {path.name: path.read_bytes() for path in make_model("llama").iterdir()} | {"README.md": CARD}
    hub.add("tiny/private", files, token=TOKEN)
    answers, _ = hub_client.call(hub.environment(tmp_path / "first", HF_TOKEN=TOKEN), fetch("tiny/private", tmp_path / "base"))
    assert answers == [{"value": None}]
    asked = sorted({(request.method, unquote(urlsplit(request.path).path)) for request in hub.asked})
    assert len(asked) >= 2 * len(files), "a HEAD and a GET of each file, and the listing"

    failed = 0
    for number, (method, path) in enumerate(asked):
        for kind, fault in enumerate(FAULTS):
            home = tmp_path / f"home-{number}-{kind}"
            hub.faults[:] = [Fault(f"{method} {path}", **{"times": 99, **fault})]
            (answer,), printed = hub_client.call(hub.environment(home, HF_TOKEN=TOKEN), fetch("tiny/private", home / "base"))
            assert TOKEN not in printed + str(answer), (method, path, fault)
            assert "error" not in answer or "\n" not in answer["error"], answer
            failed += "error" in answer
            assert not holders(home, TOKEN)
    assert failed >= len(asked)


@pytest.mark.slow
def test_a_push_that_fails_at_any_request(hub, hub_client, make_model, tmp_path):
    """Every request of a push is refused in three ways, and cut once; the next push completes it."""
    folder = shutil.copytree(make_model("llama"), tmp_path / "artifact")
    send = {"call": "push", "with": {"folder": str(folder), "repo": "me/x"}}
    (answer,), _ = hub_client.call(hub.environment(tmp_path / "first", HF_TOKEN=TOKEN), send)
    assert "value" in answer, answer
    asked = sorted({(request.method, unquote(urlsplit(request.path).path)) for request in hub.asked})
    assert {method for method, _ in asked} >= {"GET", "POST", "PUT"}

    failed = 0
    for number, (method, path) in enumerate(asked):
        for kind, fault in enumerate(FAULTS):
            hub.repositories.clear()
            hub.large.clear()
            hub.faults[:] = [Fault(f"{method} {path}", **{"times": 99, **fault})]
            home = tmp_path / f"home-{number}-{kind}"
            (answer,), printed = hub_client.call(hub.environment(home, HF_TOKEN=TOKEN), send)
            assert TOKEN not in printed + str(answer), (method, path, fault)
            assert "error" not in answer or "\n" not in answer["error"], answer
            failed += "error" in answer
            assert not holders(home, TOKEN)
            hub.faults.clear()
    assert failed >= len(asked)
    (answer,), _ = hub_client.call(hub.environment(tmp_path / "last", HF_TOKEN=TOKEN), send)
    assert "value" in answer and set(hub.files("me/x")) >= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_stages_and_commands_that_fail(tmp_path):
    """With a token in the environment and another saved by a login; the Hub is a closed port."""
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    (home / "token").write_text(SAVED)
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"model": {"source": "tiny/private"}, "quant": {"bits": "x"}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = inherited | {"HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9",
                               "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(words):
        return subprocess.run([sys.executable, "-m", *words], cwd=project, env=environment, capture_output=True, text=True,
                              timeout=120)

    with ThreadPoolExecutor(2) as pool:
        done = dict(zip((*STAGES, *COMMANDS), pool.map(run, (*STAGES, *COMMANDS)), strict=True))
    for words, result in done.items():
        said = result.stdout + result.stderr
        assert TOKEN not in said and SAVED not in said and "Traceback" not in said, (words, said[-2000:])
    assert sum(result.returncode != 0 for result in done.values()) > len(STAGES) // 2
    assert holders(tmp_path, TOKEN, SAVED) == [Path(home / "token")]
