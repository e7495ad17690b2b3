"""The Hub's real client against a server of our own on the loopback: its requests, its files, and one line for each failure."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import threading
import time

import pytest
import torch
import yaml
from conftest import ROOT
from dvc_project import Project
from hub_server import Fault, sha256

from quant.errors import InputError
from quant.hub.fetch import fetch_model
from quant.hub.source import ModelSource

MIB = 2**20
TOKEN = "_".join(("hf", "nobodys", "token"))  # not as one word, which a search of a copy of this project would find
CARD = b"---\nlicense: llama3\ntags:\n- tiny\n---\n# A tiny model\n"
NOT_NEEDED = {"pytorch_model.bin": b"pickle", "model.onnx": b"onnx", "tf_model.h5": b"tf", "model-Q4_0.gguf": b"gguf",
              "picture.png": b"png", "modeling_tiny.py": b"raise SystemExit", "consolidated.safetensors": b"a second copy",
              "onnx/model.onnx": b"onnx", "original/params.json": b"{}"}


@pytest.fixture
def files(make_model):
    """A model as a repository holds it: name -> content."""
    return {path.name: path.read_bytes() for path in make_model("llama").iterdir()} | {"README.md": CARD}


def fetch(source, out, revision=None, **environment):
    return {"call": "model", "with": {"source": source, "revision": revision, "out": str(out)}, "environment": environment}


def sharded(make_model):
    """A model in two shards: its files without them, the shards and their index, and the second one's 24 MiB."""
    from safetensors.torch import load, save

    files = {path.name: path.read_bytes() for path in make_model("llama", torch.bfloat16).iterdir()}
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    large = save({"model.extra.weight": torch.arange(12 * MIB, dtype=torch.int32).to(torch.bfloat16)})
    names = dict.fromkeys(load(files["model.safetensors"]), first) | {"model.extra.weight": second}
    shards = {first: files.pop("model.safetensors"), second: large,
              "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": names}).encode()}
    return files, shards, large


@pytest.mark.slow
def test_a_sharded_model_comes_through_the_stage_with_what_is_needed_and_resumes(hub, make_model, tmp_path):
    """python -m stages.download on a terminal, with the line cut twice in a shard, and then without the Hub."""
    files, shards, large = sharded(make_model)
    commit = hub.add("tiny/model", {**files, **shards, **NOT_NEEDED, "README.md": CARD})
    hub.faults.append(Fault(f"GET /cdn/{sha256(large)}", times=2, cut_after=11 * MIB))  # the client writes 10 MiB at a time

    shown = download_stage(tmp_path, hub.environment(tmp_path / "home"))
    base = tmp_path / "models" / "base"
    assert {path.name: path.read_bytes() for path in base.glob("*safetensors*")} == shards
    manifest = json.loads((base / "manifest.json").read_text())
    assert (manifest["source"], manifest["revision"], manifest["dtype"]) == ("tiny/model", commit, "bfloat16")
    assert manifest["license"]["id"] == "llama3"
    assert not any(name in path for path in hub.paths() for name in NOT_NEEDED)
    ranges = [asked.header("Range") for asked in hub.asked if sha256(large) in asked.path]
    assert ranges == [None, f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"], "each time on from where the line broke"
    assert f"tiny/model: main is commit {commit}; to get the same model every time, pin it: -S model.revision={commit}" in shown
    assert "files to fetch" in shown and "about 3 s at 10 MB/s" in shown and "free there" in shown
    assert "stored as bfloat16" in shown and "licence llama3" in shown
    assert all(name in shown for name in shards), "a progress bar per file"
    assert not list((tmp_path / "models").glob(".*")) and not list((tmp_path / "home").rglob("*.incomplete"))

    shutil.rmtree(base)
    count = len(hub.asked)
    shown = download_stage(tmp_path, hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1"))
    assert json.loads((base / "manifest.json").read_text()) == manifest and len(hub.asked) == count
    assert f"using commit {commit[:12]} from the cache" in shown


@pytest.mark.slow
def test_a_download_that_was_killed_goes_on_where_it_was(hub, make_model, tmp_path):
    """kill -9 in the middle of the second shard; the same command then asks for the rest of that one alone."""
    files, shards, large = sharded(make_model)
    hub.add("tiny/model", {**files, **shards})
    hub.faults += [Fault(f"GET /cdn/{sha256(large)}", cut_after=11 * MIB), Fault(f"GET /cdn/{sha256(large)}", 99, cut_after=0)]
    environment = hub.environment(tmp_path / "home")
    project(tmp_path)
    killed = subprocess.Popen([sys.executable, "-m", "stages.download"], cwd=tmp_path, env=environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while hub.faults[1].times == 99:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    (partial,) = (tmp_path / "home").rglob("*.incomplete")
    assert partial.stat().st_size == 10 * MIB and not (tmp_path / "models").exists()

    hub.faults.clear()
    before = len(hub.asked)
    shown = download_stage(tmp_path, environment)
    come = [(asked.path, asked.header("Range")) for asked in hub.asked[before:] if asked.path.startswith("/cdn")]
    assert [wanted for _, wanted in come] == [f"bytes={10 * MIB}-"] and sha256(large) in come[0][0]
    assert "1 of 7 files to fetch, 14.7 MB" in shown, shown
    base = tmp_path / "models" / "base"
    assert {path.name: path.read_bytes() for path in base.glob("*safetensors*")} == shards
    assert not list((tmp_path / "home").rglob("*.incomplete"))


@pytest.mark.slow
def test_two_downloads_at_once_fetch_a_large_file_once(hub, hub_client, make_model, tmp_path):
    files, shards, large = sharded(make_model)
    hub.add("tiny/model", {**files, **shards})
    outs = [tmp_path / "one", tmp_path / "two"]
    running = [hub_client.start(hub.environment(tmp_path / "home"), fetch("tiny/model", out)) for out in outs]
    assert [hub_client.result(child)[0] for child in running] == [[{"value": None}]] * 2
    for out in outs:
        assert {path.name: path.read_bytes() for path in out.glob("*safetensors*")} == shards
    assert sum(sha256(large) in path for path in hub.paths("GET")) == 1


def project(folder, data=None) -> None:
    """A folder to run the stage in, which takes tiny/model. data: the section of that name."""
    for name in ("stages", "quant"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"model": {"source": "tiny/model", "revision": None}, "data": data or {"source": "grammar", "sentences": 20}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def download_stage(folder, environment) -> str:
    """All that the stage prints, its errors on a terminal."""
    project(folder)
    shown, terminal, inside = [], *pty.openpty()
    termios.tcsetwinsize(inside, (40, 160))

    def listen():
        while True:
            try:
                shown.append(os.read(terminal, 4096))
            except OSError:  # closed at the other end
                return

    listener = threading.Thread(target=listen)
    listener.start()
    done = subprocess.run([sys.executable, "-m", "stages.download"], cwd=folder, env=environment, stdout=subprocess.PIPE,
                          stderr=inside)
    os.close(inside)
    listener.join()
    os.close(terminal)
    text = done.stdout.decode() + b"".join(shown).decode()
    assert done.returncode == 0, text
    return text


ODD_ANSWERS = {"nameless": b"{}", "list": b"[1]", "number": b"5", "siblings": b'{"id": "tiny/siblings", "siblings": 3}',
               "entry": b'{"id": "tiny/entry", "sha": 5, "siblings": [{"size": "many"}]}', "null": b"null"}


@pytest.mark.slow
def test_each_failure_is_one_line_that_says_what_to_do(hub, hub_client, files, tmp_path):
    hub.add("tiny/model", files)
    hub.add("tiny/private", files, token=TOKEN)
    hub.add("tiny/gated", files, token=TOKEN, gated=True)
    hub.add("tiny/pickled", {**{key: files[key] for key in ("config.json", "tokenizer.json")}, "pytorch_model.bin": b"pickle"})
    hub.add("tiny/mute", {key: files[key] for key in ("config.json", "model.safetensors")})
    hub.add("tiny/cut", {**files, "model.safetensors": files["model.safetensors"][:-9]})
    hub.add("tiny/strange", {**files, "config.json": b'{"model_type": "strange"}'})
    hub.add("tiny/portal", files)
    for name, answer in ODD_ANSWERS.items():
        hub.add(f"tiny/{name}", files)
        hub.faults.append(Fault(f"GET /api/models/tiny/{name}*", times=99, replace=answer))
    for name in ("busy", "waits", "down", "shaky"):
        hub.add(f"tiny/{name}", files)
    hub.faults += [
        Fault("GET /api/models/tiny/busy*", times=99, status=429, headers={"Retry-After": "3600"}),
        Fault("GET /api/models/tiny/waits*", times=1, status=429, headers={"Retry-After": "1"}),
        Fault("GET /api/models/tiny/down*", times=99, status=503),
        Fault("GET /api/models/tiny/shaky*", times=1, status=502),
        Fault("GET /api/models/tiny/portal*", times=1, replace=b"<html>Log in to this network</html>"),
    ]
    out = tmp_path / "base"
    expected = [
        (fetch("tiny/private", out), "asks for a login (401)", "no token was sent: `hf auth login`, or set HF_TOKEN"),
        (fetch("tiny/gated", out), f"is gated (401): accept its terms at {hub.endpoint}/tiny/gated", "hf auth login"),
        (fetch("tiny/private", out, HF_TOKEN="hf_another"), "denies access (403", "a token was sent"),
        (fetch("tiny/gated", out), "is gated (403)", "a token was sent"),
        (fetch("tiny/nothing", out), "tiny/nothing is not on 127.0.0.1", "check the spelling"),
        (fetch("tiny/model", out, "no-such-branch"), "has no revision 'no-such-branch'"),
        (fetch("tiny/model", out, "1" * 40), f"has no revision '{'1' * 40}'"),
        (fetch("tiny/busy", out), "received too many requests (429); wait 3600 s"),
        (fetch("tiny/down", out), "fails (503); try again later"),
        (fetch("tiny/pickled", out), "pickle weights only (pytorch_model.bin)", "refs/pr/1"),
        (fetch("tiny/mute", out), "has no tokenizer; expected tokenizer.json"),
        (fetch("tiny/cut", out), "truncated"),
        (fetch("tiny/strange", out), "architecture 'strange' has no table of roles"),
        (fetch("tiny/portal", out), "127.0.0.1", "does not answer like a Hub for tiny/portal"),
        *((fetch(f"tiny/{name}", out), "127.0.0.1", "does not answer like a Hub") for name in ODD_ANSWERS),
        (fetch("tiny/model", out, HF_TOKEN="hf_wörd"), "a character that can't be sent", "check HF_TOKEN"),
        (fetch("tiny/private", out, HF_TOKEN="hf_another"), "denies access (403"),
        (fetch("tiny/waits", out), None),
        (fetch("tiny/shaky", out, "main"), None),
        (fetch("tiny/private", out, HF_TOKEN=TOKEN), None),
        (fetch("tiny/gated", out), None),
    ]
    answers, printed = hub_client.call(hub.environment(tmp_path / "home"), *(step for step, *_ in expected))
    for (step, *words), answer in zip(expected, answers, strict=True):
        if words == [None]:
            assert answer == {"value": None}, step
        else:
            assert "\n" not in answer["error"] and all(word in answer["error"] for word in words), answer
    assert "answers 429; trying again in 1 s" in printed and "answers 502; trying again in 0.1 s" in printed
    assert sum("tiny/down" in path for path in hub.paths()) == 4, "tried again, and then given up"
    assert sum("tiny/busy" in path for path in hub.paths()) == 1, "an hour is not waited for"

    assert not any("tiny/strange" in path and "safetensors" in path for path in hub.paths())

    assert TOKEN not in printed and "hf_another" not in printed, "not even where the server repeats it"
    assert any(asked.header("Authorization") == f"Bearer {TOKEN}" for asked in hub.asked)
    for asked in hub.asked:
        assert not asked.path.startswith("/cdn") or TOKEN not in str(asked.headers), "the token stays with the Hub"
    for path in [*out.rglob("*"), *(tmp_path / "home").rglob("*")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_dvc_runs_it_and_the_token_stays_out_of_everything(hub, files, tmp_path):
    """dvc exp run with a private model at a commit: the token is in no lock, manifest, log or parameter."""
    commit = hub.add("tiny/private", files, token=TOKEN)
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    choice = ["-S", "model.source=tiny/private", "-S", f"model.revision={commit}"]
    environment = {key: value for key, value in hub.environment(tmp_path / "home").items() if key.startswith("HF_")}
    shown = project.dvc("exp", "run", "download", *choice, HF_TOKEN=TOKEN, **environment | {"HF_HUB_OFFLINE": "0"})
    manifest = json.loads((project.folder / "models" / "base" / "manifest.json").read_text())
    assert manifest["revision"] == commit and commit in (project.folder / "dvc.lock").read_text()
    assert TOKEN not in shown
    for path in project.folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_text_that_can_not_be_had_is_told_before_the_model_comes(hub, files, tmp_path):
    hub.add("tiny/model", files)
    project(tmp_path, {"source": "hub:tiny/none"})
    done = subprocess.run([sys.executable, "-m", "stages.download"], cwd=tmp_path, env=hub.environment(tmp_path / "home"),
                          capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "error: download: tiny/none: 127.0.0.1" in done.stderr and "asks for a login (401)" in done.stderr
    assert not any("resolve" in path for path in hub.paths())


def test_a_file_with_another_hash_than_listed_is_refused_and_deleted(hub, hub_client, files, tmp_path):
    hub.add("tiny/model", files)
    weights = files["model.safetensors"]
    wrong = weights[:-1] + bytes([weights[-1] ^ 1])
    hub.faults += [Fault(f"GET /cdn/{sha256(weights)}", replace=wrong),
                   Fault("GET /tiny/model/resolve/*/tokenizer_config.json", replace=files["tokenizer_config.json"][::-1])]
    hub.add("short/model", files)
    hub.add("big/model", files)
    hub.listed_sizes["big/model", "model.safetensors"] = 10**18
    out = tmp_path / "base"
    hub.faults.append(Fault(f"GET /cdn/{sha256(weights)}", replace=weights[:-9]))
    sources = ("tiny/model", "tiny/model", "big/model", "short/model", "tiny/model")
    answers, _ = hub_client.call(hub.environment(tmp_path / "home"), *(fetch(source, out) for source in sources))
    assert "tokenizer_config.json has git hash" in answers[0]["error"] and "deleted" in answers[0]["error"]
    assert f"model.safetensors has sha256 {sha256(wrong)}, the Hub lists {sha256(weights)}; deleted" in answers[1]["error"]
    assert "needs 2e+09 GB on the disk of" in answers[2]["error"] and "HF_HOME" in answers[2]["error"]
    assert not any("big/model/resolve" in path and "safetensors" in path for path in hub.paths()), "refused before it is asked"
    assert f"file should be of size {len(weights)} but has size {len(weights) - 9}" in answers[3]["error"]
    assert "run the same command again" in answers[3]["error"] and "\n" not in answers[3]["error"]
    assert answers[4] == {"value": None} and (out / "model.safetensors").read_bytes() == weights
    assert all(path.read_bytes() != wrong for path in (tmp_path / "home").rglob("*") if path.is_file())


BAD_INDEXES = [
    ({"a": "../../model.safetensors"}, "names '../../model.safetensors'; expected safetensors files in its own folder"),
    ({"a": "sub/model.safetensors"}, "names 'sub/model.safetensors'; expected safetensors files in its own folder"),
    ({"a": "pytorch_model.bin"}, "names 'pytorch_model.bin'; expected safetensors"),
    ({"a": 5}, "names 5; expected safetensors"),
    ({"a": "gone.safetensors"}, "lacks gone.safetensors, which its index names"),
    ({}, "weight_map is {}"),
    (["a"], "is not an index of weights"),
]


def with_index(files, weight_map):
    return {**files, "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


def test_an_index_that_can_not_be_followed_is_refused_on_the_hub_before_weights_come(hub, hub_client, files, tmp_path):
    """The files that it names are neither fetched nor opened, pickle least of all."""
    weights = files["model.safetensors"]
    others = {"sub/model.safetensors": weights, "../../model.safetensors": weights, "pytorch_model.bin": weights}
    for number, (weight_map, _) in enumerate(BAD_INDEXES):
        hub.add(f"tiny/model{number}", with_index({**files, **others}, weight_map))
    calls = [fetch(f"tiny/model{number}", tmp_path / "base") for number in range(len(BAD_INDEXES))]
    answers, _ = hub_client.call(hub.environment(tmp_path / "home"), *calls)
    for (_, message), answer in zip(BAD_INDEXES, answers, strict=True):
        assert message in answer["error"] and "\n" not in answer["error"]
    assert not any("/cdn/" in path for path in hub.paths()) and not (tmp_path / "base").exists()


@pytest.mark.parametrize(("weight_map", "message"), BAD_INDEXES)
def test_an_index_that_can_not_be_followed_is_refused_in_a_folder(files, tmp_path, weight_map, message):
    for name, data in with_index(files, weight_map).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=re.escape(message)):
        fetch_model(ModelSource(str(tmp_path)), tmp_path / "base")


def test_a_password_in_the_address_and_a_home_that_is_none(hub, hub_client, files, tmp_path):
    """HF_ENDPOINT with a user and a password, of which nothing is shown; no address at all; HF_HOME where nobody can write, or
    offline with nothing in it."""
    hub.add("tiny/gated", files, token=TOKEN, gated=True)
    (tmp_path / "file").write_text("")
    environments = [
        {"HF_ENDPOINT": f"http://user:passed@127.0.0.1:{hub.port}"}, {"HF_ENDPOINT": "http://user:passed@127.0.0.1:1"},
        {"HF_HOME": str(tmp_path / "file")}, {"HF_ENDPOINT": "nowhere"}, {"HF_HUB_OFFLINE": "1"},
    ]  # fmt: skip
    expected = [f"is gated (403): accept its terms at http://***@127.0.0.1:{hub.port}", "can't reach 127.0.0.1:1 for tiny/gated",
                "Not a directory", "can't reach nowhere for tiny/gated",
                f"tiny/gated is not completely in the cache {tmp_path / 'home' / 'hub'}, and HF_HUB_OFFLINE forbids downloads"]
    running = [hub_client.start(hub.environment(tmp_path / "home", **environment), fetch("tiny/gated", tmp_path / "base"))
               for environment in environments]
    for child, words in zip(running, expected, strict=True):
        (answer,), printed = hub_client.result(child)
        assert words in answer["error"] and "\n" not in answer["error"] and "passed" not in printed, answer


def test_a_dead_host(hub, hub_client, files, tmp_path):
    """With a warm cache the model comes from there; without, one line says that nobody answers."""
    commit = hub.add("tiny/model", files)
    out = tmp_path / "base"
    environment = hub.environment(tmp_path / "home")
    hub_client.call(environment, fetch("tiny/model", out))
    hub.close()
    shutil.rmtree(out)
    answers, _ = hub_client.call(environment, fetch("tiny/model", out, commit), fetch("tiny/model", tmp_path / "two"),
                                 fetch("tiny/other", out, commit))
    assert answers[:2] == [{"value": None}] * 2 and (out / "manifest.json").is_file()
    assert f"can't reach 127.0.0.1:{hub.port} for tiny/other at {commit[:12]}" in answers[2]["error"]
