"""Variants are published on the Hub, and plain from_pretrained opens them there as they were."""

import csv
import json
import shutil
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pypandoc
import pytest
import torch
import yaml
from conftest import ROOT, VOCABULARY, build_variant
from hub_server import Fault
from huggingface_hub import ModelCard
from test_hub import TOKEN
from test_markup import HOSTILE, Elements

from quant.errors import InputError
from quant.files import write_json
from quant.hub.fetch import fetch_model
from quant.hub.source import ModelSource
from quant.outside import read_json
from quant.publish.push import publication
from quant.runners import open_runner
from quant.text.corpus import write_corpus
from quant.text.read import read_corpus
from quant.text.source import TextSource
from quant.variants import variant

TEXT = torch.randint(0, VOCABULARY, (1, 30), generator=torch.Generator().manual_seed(5))
READ = """
import json, sys, torch
import quant.transformers_format
from transformers import AutoModelForCausalLM
tokens = torch.tensor(json.loads(sys.argv[1]))
torch.set_grad_enabled(False)  # with gradients bitsandbytes takes another kernel on some processors
for repo in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(repo, dtype=torch.float32)
    print(json.dumps(model(tokens).logits.tolist()))
"""
VARIANTS = {
    "bf16": {"method": "float", "dtype": "bfloat16"},
    "nf4": {"method": "quant", "bits": 4, "codebook": "nf4", "group_size": 64},
    "bnb-nf4": {"method": "bitsandbytes", "type": "nf4"},
    "gguf-q8_0": {"method": "llama_cpp", "type": "Q8_0"},
}
MEASURED = {"ppl": 21.5, "ppl_change_pct": 1.25, "kld_mnats": 7.5, "top1_agree_pct": 95.0, "bits_per_weight": 5.4321,
            "weights_mib": 1.5, "disk_mib": 1.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_model):
    """A project folder after a run: a base that came from the Hub, three variants, and their metrics."""
    folder = tmp_path_factory.mktemp("run")
    with chdir(folder):
        make_run(folder, make_model("gpt2"), tmp_path_factory.mktemp("gguf"))
    return folder


def make_run(folder, source, elsewhere):
    for name in ("stages", "quant"):
        Path(name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["variants"] = VARIANTS
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copytree(source, folder / "source")
    (folder / "source" / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    base = Path("models/base")
    fetch_model(ModelSource("source"), base)
    write_json(base / "manifest.json", read_json(base / "manifest.json") | {"source": "tiny/model", "revision": "a" * 40})
    shutil.copytree(ROOT / "models" / "embedded", elsewhere / "tiny")  # whose tokenizer fits, as llama.cpp demands
    write_json(elsewhere / "tiny" / "manifest.json", {"source": "tiny/model", "revision": "a" * 40})
    for name in ("nf4", "bnb-nf4", "gguf-q8_0"):
        row = dict(VARIANTS[name])
        method = row.pop("method")
        build_variant(elsewhere / "tiny" if method == "llama_cpp" else base, method, row, Path("models") / name)
    write_corpus(read_corpus(TextSource("grammar", sentences=20)), Path("data/eval"), Path("data/private"))
    protocol = {"name": "joined", "version": 1, "context": 64, "stride": 64, "tokens": 1234}
    for name in ("nf4", "bnb-nf4", "gguf-q8_0"):
        write_json(Path("reports/quality") / f"{name}.json", {"protocol": protocol})
    base_measured = MEASURED | {"ppl": 20.0, "ppl_change_pct": 0.0, "kld_mnats": 0.0}
    with open("reports/variants.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, ["variant", *MEASURED])
        rows.writeheader()
        rows.writerows([{"variant": "base", **base_measured}, *({"variant": name, **MEASURED} for name in VARIANTS)])


def command(*words):
    return [sys.executable, "-m", "stages.push", *words]


def push(hub, run, home, *words, answer="", token=TOKEN):
    environment = hub.environment(home, **({"HF_TOKEN": token} if token else {}))
    return subprocess.run(command(*words), cwd=run, env=environment, input=answer, capture_output=True, text=True)


def test_a_dry_run_lists_files_and_sizes_and_sends_nothing(hub, run, tmp_path):
    done = push(hub, run, tmp_path, "nf4", "--repo", "me/tiny-nf4")
    assert done.returncode == 0, done.stderr
    for path in (run / "models" / "nf4").iterdir():
        assert (f"{path.stat().st_size:,} bytes" in done.stdout) == (path.name != "manifest.json"), path
    assert "README.md" in done.stdout and "nothing was sent; add --yes" in done.stdout
    assert "warning: the base model's licence, cc-by-nd-4.0, does not allow sharing modified copies" in done.stdout
    assert "add --code URL" in done.stdout
    done = push(hub, run, tmp_path, "--all", "--repo", "me/tiny")
    assert all(f"{name} -> me/tiny-{name}: " in done.stdout for name in ("nf4", "bnb-nf4", "gguf-q8_0"))
    assert hub.asked == []


@pytest.mark.slow
def test_cut_in_the_middle_it_is_repeated_and_reads_back_the_same(hub, run, tmp_path):
    """The first upload is killed while the weights go out, the second meets one cut line and completes."""
    hub.faults.append(Fault("PUT /storage/*", times=99, cut_after=10_000))
    killed = subprocess.Popen(command("nf4", "--repo", "me/tiny-nf4", "--yes"), cwd=run, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, env=hub.environment(tmp_path / "home", HF_TOKEN=TOKEN))
    while not any(asked.method == "PUT" for asked in hub.asked):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert set(hub.files("me/tiny-nf4")) == {".gitattributes"}, "all or nothing"
    assert json.loads(next(asked for asked in hub.asked if asked.path == "/api/repos/create").body)["visibility"] == "private"

    hub.faults[:] = [Fault("PUT /storage/*", times=1, cut_after=10_000)]
    done = push(hub, run, tmp_path / "home", "nf4", "--repo", "me/tiny-nf4", "--yes")
    assert done.returncode == 0, done.stderr
    files = hub.files("me/tiny-nf4")
    local = {path.name: path.read_bytes() for path in (run / "models" / "nf4").iterdir() if path.name != "manifest.json"}
    assert {name: data for name, data in files.items() if name not in ("README.md", ".gitattributes")} == local
    done_again = push(hub, run, tmp_path / "home", "bnb-nf4", "--repo", "me/tiny-bnb", "--yes")
    assert done_again.returncode == 0, done_again.stderr
    assert TOKEN not in done.stdout + done.stderr and not any(TOKEN.encode() in data for data in files.values())

    places = ["me/tiny-nf4", "models/nf4", "me/tiny-bnb", "models/bnb-nf4"]
    read = subprocess.run([sys.executable, "-c", READ, json.dumps(TEXT.tolist()), *places], text=True, cwd=run,
                          env=hub.environment(tmp_path / "other", HF_TOKEN=TOKEN), capture_output=True)
    assert read.returncode == 0, read.stderr[-2000:]
    logits = dict(zip(places, (torch.tensor(json.loads(line)) for line in read.stdout.splitlines()), strict=True))
    for there, here in (places[:2], places[2:]):
        assert torch.equal(logits[there], logits[here]), "the same numbers from the Hub as from the folder"
        assert torch.allclose(logits[here], open_runner(run / here).logits(TEXT), atol=1e-5), "and those that were measured"


def test_what_exists_is_not_overwritten_unasked(hub, run, tmp_path):
    theirs = {"README.md": b"theirs", "model.safetensors": b"their weights"}
    hub.add("me/tiny", theirs)
    done = push(hub, run, tmp_path, "nf4", "--repo", "me/tiny", "--yes")
    assert done.returncode == 1 and "me/tiny exists and holds 2 files; nothing was sent" in done.stderr
    assert "--revision BRANCH" in done.stderr and hub.files("me/tiny") == theirs
    done = push(hub, run, tmp_path, "nf4", "--repo", "me/tiny", "--yes", answer="y\n")
    assert done.returncode == 1 and hub.files("me/tiny") == theirs
    done = push(hub, run, tmp_path, "nf4", "--repo", "me/tiny", "--yes", "--revision", "nf4")
    assert done.returncode == 0, done.stderr
    assert hub.files("me/tiny") == theirs and "quantized copy" in hub.files("me/tiny", "nf4")["README.md"].decode()
    done = push(hub, run, tmp_path, "nf4", "--repo", "me/tiny", "--yes", answer="me/tiny\n")
    assert done.returncode == 0 and "Type me/tiny to confirm" in done.stdout
    assert "quantized copy" in hub.files("me/tiny")["README.md"].decode()


def test_a_gguf_goes_out_with_its_metadata_and_a_card_that_says_what_was_measured(hub, run, tmp_path):
    from gguf import GGUFReader

    done = push(hub, run, tmp_path, "gguf-q8_0", "--repo", "me/tiny-gguf", "--yes", "--public")
    assert done.returncode == 0, done.stderr
    files = hub.files("me/tiny-gguf")
    assert set(files) == {".gitattributes", "README.md", "model-Q8_0.gguf"}
    assert files["model-Q8_0.gguf"] == (run / "models" / "gguf-q8_0" / "model.gguf").read_bytes()
    fields = {name: field.contents() for name, field in GGUFReader(run / "models" / "gguf-q8_0" / "model.gguf").fields.items()
              if name.startswith("general.")}
    assert fields["general.name"] == "model" and fields["general.file_type"] == 7  # MOSTLY_Q8_0
    assert fields["general.source.url"] == f"https://huggingface.co/tiny/model/tree/{'a' * 40}"
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "tiny/model" and front["base_model_relation"] == "quantized"
    assert front["license"] == "cc-by-nd-4.0" and front["library_name"] == "gguf"
    for words in ("a" * 40, "| method | llama.cpp, weights only |", "| scheme | Q8_0 |", "| bits per weight | 5.43 ",
                  "| 20.000 | 21.500 |", "+1.250", "20 lines of `grammar`", "1234 tokens",
                  "llama-cli --hf-repo me/tiny-gguf --hf-file model-Q8_0.gguf",
                  "does not allow sharing modified copies"):
        assert words in card, words
    created = json.loads(next(asked for asked in hub.asked if asked.path == "/api/repos/create").body)
    assert created["visibility"] == "public"


@pytest.mark.slow
def test_all_that_stopped_in_the_middle_is_repeated(hub, run, tmp_path):
    """A busy Hub is waited for; where the second of three fails, the same command then sends what is not there, and no more."""
    busy = Fault("POST /api/models/me/tiny-nf4/commit/*", status=429, headers={"Retry-After": "1"})
    hub.faults += [busy, Fault("POST /api/models/me/tiny-bnb-nf4/commit/*", times=9, status=403)]
    words = ("--all", "--repo", "me/tiny", "--yes")
    done = push(hub, run, tmp_path, *words)
    assert done.returncode == 1 and "denies access (403" in done.stderr and "answers 429; trying again in 1 s" in done.stderr
    assert "pushed: " in done.stdout and ("model", "me/tiny-gguf-q8_0") not in hub.repositories
    first = hub.repositories["model", "me/tiny-nf4"].branches["main"]
    hub.faults.clear()
    there = f"already there: {hub.endpoint}/me/tiny-nf4/tree/{first}"
    for expected in ([there, "pushed: ", "pushed: "], [there, "already there: ", "already there: "]):
        done = push(hub, run, tmp_path, *words)
        assert done.returncode == 0, done.stderr
        told = [line for line in done.stdout.splitlines() if line.startswith(("pushed", "already"))]
        assert len(told) == 3 and all(map(str.startswith, told, expected)), done.stdout
    assert hub.repositories["model", "me/tiny-nf4"].branches["main"] == first


def test_another_push_that_commits_first_is_told(hub, run, tmp_path):
    """The same files are there then; other files are not mixed with these."""
    commits, words = "POST /api/models/me/tiny-nf4/commit/*", ("nf4", "--repo", "me/tiny-nf4", "--yes")
    hub.faults.append(Fault(commits, before=lambda: push(hub, run, tmp_path / "other", *words)))
    done = push(hub, run, tmp_path, *words)
    head = hub.repositories["model", "me/tiny-nf4"].branches["main"]
    assert f"already there: {hub.endpoint}/me/tiny-nf4/tree/{head}" in done.stdout, done.stdout + done.stderr
    theirs = {"README.md": b"theirs"}
    hub.add("me/tiny-nf4", {".gitattributes": b""})
    hub.faults.append(Fault(commits, before=lambda: hub.add("me/tiny-nf4", theirs)))
    done = push(hub, run, tmp_path, *words)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1 and "was changed by another push" in done.stderr
    assert "Traceback" not in done.stderr and hub.files("me/tiny-nf4") == theirs


def test_what_can_not_be_pushed_is_one_line(hub, run, tmp_path):
    for words, answer in [
        (("base", "--repo", "me/x"), "base is the base model as it was given"),
        (("bf16", "--repo", "me/x"), "bf16 is the base model as it was given"),
        (("nope", "--repo", "me/x"), "expected one of nf4, bnb-nf4, gguf-q8_0"),
        (("nf4", "--repo", "x"), "--repo is 'x'; expected owner/name"),
        (("nf4", "--repo", "me/x", "--yes"), "asks for a login (401)"),
    ]:
        done = push(hub, run, tmp_path, *words, token=None)
        assert done.returncode == 1 and answer in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert ("model", "me/x") not in hub.repositories
    done = subprocess.run(command("nf4", "--repo", "me/x", "--yes"), cwd=run, capture_output=True, text=True,
                          env=hub.environment(tmp_path, HF_HUB_OFFLINE="1"))
    assert done.returncode == 1 and "HF_HUB_OFFLINE is set, and a push needs the Hub" in done.stderr


def published(run, name="nf4", reports=Path("reports"), **more):
    """The card of a variant, whose paths are those of the run's folder."""
    params = yaml.safe_load((run / "params.yaml").read_text())
    with chdir(run):
        return publication(variant(name, params), Path("models", name), Path("models/base"), Path("data/eval"), "me/tiny",
                           reports, **more)


def test_a_card_names_the_base_as_a_reader_finds_it(run):
    """A licence beside the base's card by its whole address; of a local folder its name alone, and no page."""
    manifest = read_json(run / "models" / "base" / "manifest.json")
    try:
        license = {"id": "other", "name": "their-terms", "link": "LICENSE.md"}
        write_json(run / "models" / "base" / "manifest.json", manifest | {"license": license})
        hosted = ModelCard(published(run).card)
        local = {"source": "/home/somebody/private/tiny", "revision": None}
        write_json(run / "models" / "base" / "manifest.json", manifest | local)
        local = ModelCard(published(run, code="https://example.com/pipeline").card)
    finally:
        write_json(run / "models" / "base" / "manifest.json", manifest)
    link = f"https://huggingface.co/tiny/model/blob/{'a' * 40}/LICENSE.md"
    assert hosted.data.to_dict() == {
        "base_model": "tiny/model", "base_model_relation": "quantized", "library_name": "transformers", "license": "other",
        "license_name": "their-terms", "license_link": link, "pipeline_tag": "text-generation", "tags": ["quantized", "quant"]}
    assert f"The base model's: their-terms ({link})." in hosted.content
    assert "`tiny`, a local model" in local.content and "somebody" not in local.content and local.data.base_model is None
    assert "https://example.com/pipeline" in local.content


def test_a_card_shows_what_comes_from_outside_as_text(run):
    """As the Hub renders it: Markdown of GitHub's kind, in which HTML counts."""
    bad, name = " ".join(HOSTILE), " ".join(text for text in HOSTILE if "/" not in text)  # a folder's name has no slash
    base, corpus = run / "models" / "base" / "manifest.json", run / "data" / "eval" / "corpus.json"
    kept = {path: read_json(path) for path in (base, corpus)}
    try:
        license = {"id": "other", "name": bad, "link": bad}
        write_json(base, kept[base] | {"source": name, "revision": None, "license": license})
        write_json(corpus, kept[corpus] | {"source": bad})
        card = published(run).card
    finally:
        for path, values in kept.items():
            write_json(path, values)
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["license_name"] == bad
    page = Elements(pypandoc.convert_text(body, "html", format="gfm"))
    assert not {"script", "img", "em", "iframe"} & {tag for tag, _ in page.found}
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert not [attributes for _, attributes in page.found if not attributes.get("href", "https:").startswith(("https:", "#"))]
    assert page.text.count("onerror=window.pwned=1") >= 2 * 4


def test_a_card_is_not_made_without_measurements(run):
    with pytest.raises(InputError, match=r"nowhere/quality/nf4\.json is missing, .*; run dvc repro"):
        published(run, reports=Path("nowhere"))
