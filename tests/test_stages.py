"""A stage called with bad input says so in one line and leaves nothing half-written."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import EMBEDDED_TOKENS, ROOT, preparation, run_stage, save_model

from quant.outside import read_json


@pytest.fixture
def workspace(tmp_path, make_model):
    """A DVC project with the stages, a tiny model in models/base and no results yet."""
    for name in ("stages", "quant"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("params.yaml", "dvc.yaml", "requirements.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    shutil.copytree(make_model("gpt2"), tmp_path / "models" / "base")
    return tmp_path


def planned(workspace, **variants):
    """The workspace with these rows only, planned, and with nothing prepared for their methods."""
    change(workspace, whole_section=True, variants=variants, family={"variants": [], "models": {}})
    done = run_stage("plan", cwd=workspace)
    assert done.returncode == 0, done.stderr
    for row in variants.values():
        (workspace / "models" / "prepared" / row["method"]).mkdir(parents=True, exist_ok=True)
    return workspace


def models(workspace):
    return sorted(path.name for path in (workspace / "models").iterdir() if path.name != "prepared")


def change(workspace, whole_section=False, **sections):
    """Update sections of params.yaml, or replace them."""
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    for section, values in sections.items():
        params[section] = {**params[section], **values} if isinstance(values, dict) and not whole_section else values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def complaint(done):
    """The one line on standard error of a stage that failed."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(("sections", "words"), [
    ({"variants": {"whole": {"method": "quant", "bitz": 4}}}, ["variants.whole: unknown recipe key 'bitz'", "known: bits"]),
    ({"variants": {"whole": {"bits": 4}}}, ["variants.whole is {'bits': 4}", "a row with a method"]),
    ({"variants": {"x": {"method": "nosuch"}}},
     ["variants.x: method is 'nosuch'", "bitsandbytes, calibrated, float, llama_cpp, peers, quant"]),
    ({"variants": {"base": {"method": "quant"}}}, ["a variant can't be called 'base'"]),
    ({"variants": {"my row": {"method": "quant"}}}, ["a variant can't be called 'my row'"]),
    ({"variants": {"x": {"method": "bitsandbytes", "type": "int4"}}}, ["variants.x: bitsandbytes type is 'int4'", "fp4, nf4"]),
    ({"variants": {"bf16": {"method": "float", "dtype": "float8"}}}, ["variants.bf16: dtype is 'float8'", "float32, bfloat16"]),
    ({"quant": {"bits": 1}}, ["bits is 1", "2 to 8"]),
    ({"evaluate": {"context": "abc"}}, ["evaluate.context is 'abc'"]),
    ({"benchmark": {"rounds": 0}}, ["benchmark.rounds is 0"]),
    ({"device": "gpu"}, ["device is 'gpu'", "auto, cpu, cuda"]),
    ({"data": {"sentences": -5}}, ["data.sentences is -5"]),
    ({"model": None}, ["model is None", "expected a section"]),
    ({"quant": 5}, ["the section quant is 5", "expected keys and values"]),
    ({"calibrated": 5, "variants": {"x": {"method": "calibrated"}}}, ["the section calibrated is 5", "expected keys"]),
    ({"calibration": {"windows": 0}}, ["calibration.windows is 0"]),
    ({"variants": {"x": {"method": "calibrated", "budget": 0.1}}}, ["variants.x: budget is 0.1", "from 0.5 to 32"]),
    ({"variants": 5}, ["variants is 5", "expected rows"]),
    ({"variants": {"x": 5}}, ["variants.x is 5", "a row with a method"]),
])  # fmt: skip
def test_wrong_parameters_are_refused_before_any_work(workspace, sections, words):
    """All of them by the first stage, in one line that names the section, what was found and what was expected."""
    change(workspace, **sections)
    line = complaint(run_stage("plan", cwd=workspace))
    assert line.startswith("error: plan: ") and all(word in line for word in words), line
    assert models(workspace) == ["base"] and not (workspace / "data" / "plan").exists()


@pytest.mark.parametrize(("row", "words"), [
    ({"include": ["transformer.x.*"]}, ["'transformer.x.*' selects nothing"]),
    ({"blocks": [7]}, ["blocks names 7; the model's blocks are 0 to 1"]),
])  # fmt: skip
def test_a_recipe_that_does_not_fit_the_model_costs_its_row(workspace, row, words):
    """Its stages end well, and what they write is the reason."""
    planned(workspace, whole={"method": "quant", **row})
    for stage in ("quantize", "evaluate", "benchmark"):
        done = run_stage(stage, "whole", cwd=workspace)
        assert done.returncode == 0 and not done.stderr, done.stderr
    refused = read_json(workspace / "models" / "whole" / "refused.json")
    assert refused["stage"] == "quantize" and refused["here"] == {} and all(word in refused["reason"] for word in words)
    for kind in ("quality", "speed"):
        found = read_json(workspace / "reports" / kind / "whole.json")
        assert found["refused"] == refused and found["metrics"] == {}
    planned(workspace, whole={"method": "quant"})
    assert run_stage("quantize", "whole", cwd=workspace).returncode == 0
    assert "refused.json" not in [path.name for path in (workspace / "models" / "whole").iterdir()]


def test_a_variant_that_can_not_be_run_costs_its_row(workspace):
    """One with another vocabulary than the base's, to compare with; the base itself stops the run."""
    from transformers import GPT2Config

    planned(workspace, other={"method": "quant"})
    change(workspace, data={"source": "grammar", "sentences": 5}, evaluate={"context": 64, "stride": 64})
    preparation(workspace / "models" / "base", workspace / "data" / "eval", [])
    for name, more in (("base", 0), ("other", 1)):
        config = GPT2Config(vocab_size=EMBEDDED_TOKENS + more, n_positions=64, n_embd=64, n_layer=1, n_head=4, bos_token_id=0)
        save_model(config, workspace / "models" / name)
    done = run_stage("evaluate", "base", cwd=workspace)
    assert done.returncode == 0, done.stderr
    done = run_stage("evaluate", "other", cwd=workspace)
    assert done.returncode == 0 and f"other is left out: the variant has {EMBEDDED_TOKENS + 1} logits" in done.stdout, done.stderr
    refused = read_json(workspace / "reports" / "quality" / "other.json")["refused"]
    assert refused["stage"] == "evaluate" and refused["here"]["machine"]
    shutil.rmtree(workspace / "models" / "base")
    assert "does not exist" in complaint(run_stage("evaluate", "base", cwd=workspace))


def test_a_bug_stops_the_run(workspace):
    """Its traceback is shown, and no row stands for it."""
    planned(workspace, whole={"method": "quant"})
    script = ("import runpy, sys; from quant.model import artifact\n"
              "def broken(*_): raise ZeroDivisionError('a bug')\n"
              "artifact.write_artifact = broken; sys.argv = ['stages/quantize.py', 'whole']\n"
              "runpy.run_module('stages.quantize', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", script], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: a bug\n") and models(workspace) == ["base"]


@pytest.mark.parametrize(("stage", "damage", "words"), [
    ("download", lambda file: file.unlink(), ["no model.safetensors"]),
    ("quantize", lambda file: file.write_bytes(file.read_bytes()[:-10]), ["bytes, its header says", "fetch it again"]),
    ("prepare", lambda file: file.write_bytes(b"\xff" * 400), ["safetensors file: 400 bytes", "fetch it again"]),
    ("download", lambda file: file.rename(file.with_name("pytorch_model.bin")), ["pickle", "pytorch_model.bin"]),
])  # fmt: skip
def test_a_damaged_checkpoint(workspace, stage, damage, words):
    folder = workspace / "models" / "base"
    if stage == "download":
        folder = folder.rename(workspace / "source")
        change(workspace, model={"source": "source"})
    else:
        planned(workspace, whole={"method": "quant"}, gguf={"method": "llama_cpp", "type": "F16"})
    damage(folder / "model.safetensors")
    line = complaint(run_stage(stage, *(["whole"] if stage == "quantize" else []), cwd=workspace))
    assert all(word in line for word in words)
    assert not set(models(workspace)) - {"base"}


def test_without_a_row_of_llama_cpp_nothing_is_converted(workspace, make_model):
    """A model that llama.cpp lacks costs the rows of llama.cpp, and only where there are some."""
    shutil.rmtree(workspace / "models" / "base")
    shutil.copytree(make_model("gpt_neo"), workspace / "models" / "base")
    planned(workspace, whole={"method": "quant"}, gguf={"method": "llama_cpp", "type": "F16"})
    done = run_stage("prepare", cwd=workspace)
    assert done.returncode == 0 and "rows of the method llama_cpp are left out: llama.cpp has no architecture for" in done.stdout
    for name in ("whole", "gguf"):
        assert run_stage("quantize", name, cwd=workspace).returncode == 0
    assert "GPTNeoForCausalLM" in read_json(workspace / "models" / "gguf" / "refused.json")["reason"]
    assert (workspace / "models" / "whole" / "model.safetensors").is_file()
    planned(workspace, whole={"method": "quant"})
    assert run_stage("prepare", cwd=workspace).returncode == 0
    prepared = workspace / "models" / "prepared"
    assert sorted(path.name for path in prepared.iterdir()) == ["float", "quant"], "the base is of the method float"


@pytest.mark.slow
@pytest.mark.parametrize(("source", "word"), [
    ({"source": "nowhere"}, "model 'nowhere'"),
    ({"source": "some/model", "revision": "0" * 40}, "some/model at 000000000000"),
    ({"source": "models/base", "token": "hf_x"}, "unknown model key 'token'; known: source, revision"),
])  # fmt: skip
def test_a_model_that_can_not_be_had(workspace, source, word):
    change(workspace, model=source)
    assert word in complaint(run_stage("download", cwd=workspace))


@pytest.mark.slow
def test_text_and_model_that_can_not_be_had_are_told_together(workspace):
    change(workspace, model={"source": "some/model"}, data={"source": "no/such/text"})
    line = complaint(run_stage("download", cwd=workspace))
    assert "corpus 'no/such/text'" in line and ". And some/model" in line


@pytest.mark.slow
@pytest.mark.parametrize(("content", "word"), [(b"", "is empty"), (b"caf\xe9\n", "not UTF-8: line 1")])
def test_a_corpus_that_is_none(workspace, content, word):
    (workspace / "models" / "base").rename(workspace / "source")
    (workspace / "text.txt").write_bytes(content)
    change(workspace, model={"source": "source"}, data={"source": "text.txt"})
    assert word in complaint(run_stage("download", cwd=workspace))
    assert not (workspace / "data").exists()


def test_a_full_disk(workspace):
    """A limit on the size of files stands for a disk that fills; the kernel reports it the same way."""
    planned(workspace, selective={"method": "quant"})
    script = "ulimit -f 40; trap '' XFSZ; exec " + f"{sys.executable} -m stages.quantize selective"
    done = subprocess.run(["bash", "-c", script], cwd=workspace, capture_output=True, text=True)
    assert "error: quantize selective: can't write" in complaint(done)
    assert models(workspace) == ["base"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_leaves_nothing_that_looks_whole(workspace, number):
    from transformers import GPT2Config, GPT2LMHeadModel

    # Large enough that quantizing it takes far longer than noticing that it has begun.
    large = GPT2Config(vocab_size=60_000, n_embd=256, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(large).save_pretrained(workspace / "models" / "base")
    planned(workspace, whole={"method": "quant", "include": ["*"]})
    words = [sys.executable, "-m", "stages.quantize", "whole"]
    # A shell starts its background jobs with SIGINT ignored, and these tests may run in one.
    process = subprocess.Popen(words, cwd=workspace, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while process.poll() is None and not list((workspace / "models").glob(".whole.*.partial")):
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait() != 0
    assert not (workspace / "models" / "whole").exists()
    assert run_stage("quantize", "whole", cwd=workspace).returncode == 0
    assert models(workspace) == ["base", "whole"]


def test_a_stage_runs_both_ways_and_says_what_it_takes(workspace):
    """python -m stages.x, as DVC calls it, and python stages/x.py; --help is the docstring."""
    for words in (["-m", "stages.plan"], ["stages/plan.py"]):
        shutil.rmtree(workspace / "data", ignore_errors=True)
        done = subprocess.run([sys.executable, *words], cwd=workspace, capture_output=True, text=True)
        assert done.returncode == 0 and (workspace / "data" / "plan" / "methods.json").is_file(), done.stderr
    done = run_stage("quantize", "--help", cwd=workspace)
    assert done.returncode == 0 and "usage: python -m stages.quantize VARIANT" in done.stdout
    assert "quantize: variant 'nosuch' is not planned" in complaint(run_stage("quantize", "nosuch", cwd=workspace)).replace(
        "quantize nosuch", "quantize")


@pytest.mark.parametrize("stage", sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py")))
@pytest.mark.parametrize("words", [["--help"], ["too", "many", "arguments"]], ids=["help", "refused"])
def test_help_and_refused_arguments_of_a_stage_import_no_large_library(stage, words):
    script = (f"import runpy, sys; sys.argv = {[f'stages/{stage}.py', *words]!r}\n"
              f"try: runpy.run_module('stages.{stage}', run_name='__main__')\n"
              "except SystemExit: pass\n"
              "print('heavy:', sorted({'torch', 'transformers', 'matplotlib', 'numba', 'dvc'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("heavy: []\n"), done.stdout[-200:] + done.stderr


def test_another_checkouts_code_is_refused(workspace):
    """`python stages/x.py` finds the installed package; in a copy of the project that would be the wrong code."""
    (workspace / "quant").unlink()
    shutil.copytree(ROOT / "quant", workspace / "quant", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, str(ROOT / "stages" / "plan.py")], cwd=workspace, capture_output=True, text=True)
    line = complaint(done)
    assert "this is the code of" in line and "run python -m stages.plan in the project's folder" in line


def test_outside_a_project(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "stages" / "plan.py")], cwd=tmp_path, capture_output=True, text=True)
    assert "there is no params.yaml in" in complaint(done)


@pytest.mark.parametrize("text", ["a: [1", "\t- x", "just words", ""])
def test_params_that_are_no_mapping(workspace, text):
    (workspace / "params.yaml").write_text(text)
    assert complaint(run_stage("plan", cwd=workspace)).startswith("error: plan: params.yaml ")
