"""A stage called with bad input says so in one line and leaves nothing half-written."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, run_stage


@pytest.fixture
def workspace(tmp_path, make_model):
    """A DVC project with the stages, a tiny model in models/base and a few lines in data/eval."""
    for name in ("stages", "quant"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    shutil.copytree(make_model("gpt2"), tmp_path / "models" / "base")
    return tmp_path


def change(workspace, **sections):
    """Update sections of params.yaml."""
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    for section, values in sections.items():
        params[section] = {**params[section], **values} if isinstance(values, dict) else values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def complaint(done):
    """The one line on standard error of a stage that failed."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(("sections", "words"), [
    ({"recipes": {"whole": {"bitz": 4}}}, ["quantize whole", "unknown recipe key 'bitz'", "known: bits"]),
    ({"quant": {"bits": 1}}, ["quantize whole", "bits is 1", "2 to 8"]),
    ({"quant": {"group_size": 7}}, ["quantize whole: transformer.", "group_size 7 does not divide the 64 columns"]),
    ({"recipes": {"whole": {"include": ["transformer.x.*"]}}}, ["'transformer.x.*' selects nothing"]),
])  # fmt: skip
def test_a_bad_recipe(workspace, sections, words):
    change(workspace, **sections)
    line = complaint(run_stage("quantize", "whole", cwd=workspace))
    assert all(word in line for word in words)
    assert sorted(p.name for p in (workspace / "models").iterdir()) == ["base"]


@pytest.mark.parametrize(("damage", "words"), [
    (lambda file: file.unlink(), ["no model.safetensors"]),
    (lambda file: file.write_bytes(file.read_bytes()[:-10]), ["cut off"]),
    (lambda file: file.write_bytes(b"\xff" * 400), ["no whole safetensors file"]),
    (lambda file: file.rename(file.with_name("pytorch_model.bin")), ["pickle weights only (pytorch_model.bin)"]),
])  # fmt: skip
@pytest.mark.parametrize("stage", ["download", "quantize", "convert"])
def test_a_damaged_checkpoint(workspace, stage, damage, words):
    folder = workspace / "models" / "base"
    if stage == "download":
        folder = folder.rename(workspace / "source")
        change(workspace, model={"source": "source"})
    damage(folder / "model.safetensors")
    line = complaint(run_stage(stage, *(["whole"] if stage == "quantize" else []), cwd=workspace))
    assert all(word in line for word in words)
    assert not {p.name for p in (workspace / "models").iterdir()} - {"base"}


def test_an_empty_gguf_section_leaves_llama_cpp_out(workspace, make_model):
    """A model llama.cpp lacks stops the pipeline only while there is something to convert it for."""
    shutil.rmtree(workspace / "models" / "base")
    shutil.copytree(make_model("gpt_neo"), workspace / "models" / "base")
    assert "llama.cpp has no architecture for GPTNeoForCausalLM" in complaint(run_stage("convert", cwd=workspace))
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    (workspace / "params.yaml").write_text(yaml.safe_dump({**params, "gguf": {}}))
    assert run_stage("convert", cwd=workspace).returncode == 0
    listed = subprocess.run([sys.executable, "-m", "dvc", "stage", "list", "--name-only"], cwd=workspace, capture_output=True,
                            text=True)
    assert "bnb@nf4" in listed.stdout and "gguf" not in listed.stdout, listed.stderr


@pytest.mark.parametrize(("source", "word"), [
    ({"source": "nowhere"}, "model 'nowhere' is no folder here and no Hub id"),
    ({"source": "some/model", "revision": "0" * 40}, "some/model at 000000000000 is not (whole) in the cache"),
    ({"source": "models/base", "token": "hf_x"}, "unknown model key 'token'; known: source, revision"),
])  # fmt: skip
def test_a_model_that_can_not_be_had(workspace, source, word):
    change(workspace, model=source)
    assert word in complaint(run_stage("download", cwd=workspace))


def test_text_and_model_that_can_not_be_had_are_told_together(workspace):
    change(workspace, model={"source": "some/model"}, data={"source": "no/such/text"})
    line = complaint(run_stage("download", cwd=workspace))
    assert "corpus 'no/such/text' is no file or folder here" in line and ". And some/model is not (whole) in the cache" in line


@pytest.mark.parametrize(("content", "word"), [(b"", "is empty"), (b"caf\xe9\n", "not UTF-8: line 1")])
def test_a_corpus_that_is_none(workspace, content, word):
    (workspace / "models" / "base").rename(workspace / "source")
    (workspace / "text.txt").write_bytes(content)
    change(workspace, model={"source": "source"}, data={"source": "text.txt"})
    assert word in complaint(run_stage("download", cwd=workspace))
    assert not (workspace / "data").exists()


def test_a_full_disk(workspace):
    """A limit on the size of files stands for a disk that fills; the kernel reports it the same way."""
    script = "ulimit -f 40; trap '' XFSZ; exec " + f"{sys.executable} stages/quantize.py selective"
    done = subprocess.run(["bash", "-c", script], cwd=workspace, capture_output=True, text=True)
    assert "error: quantize selective: can't write" in complaint(done)
    assert sorted(p.name for p in (workspace / "models").iterdir()) == ["base"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_leaves_nothing_that_looks_whole(workspace, number):
    from transformers import GPT2Config, GPT2LMHeadModel

    # Large enough that quantizing it takes far longer than noticing that it has begun.
    large = GPT2Config(vocab_size=60_000, n_embd=256, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(large).save_pretrained(workspace / "models" / "base")
    words = [sys.executable, "stages/quantize.py", "whole"]
    # A shell starts its background jobs with SIGINT ignored, and these tests may run in one.
    process = subprocess.Popen(words, cwd=workspace, stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    partial = workspace / "models" / ".whole.partial"
    while process.poll() is None and not partial.exists():
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait() != 0
    assert not (workspace / "models" / "whole").exists()
    assert run_stage("quantize", "whole", cwd=workspace).returncode == 0
    assert sorted(p.name for p in (workspace / "models").iterdir()) == ["base", "whole"]
