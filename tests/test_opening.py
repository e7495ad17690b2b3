"""What the libraries refuse when they open a model is one line; a bug of this project and a full memory stay what they are."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, build_variant

from quant.errors import InputError
from quant.gguf import probe
from quant.model.opening import opened_by_transformers
from quant.runners import open_runner

LIES = [{"hidden_act": "no such function"}, {"rope_scaling": {"rope_type": "no such rope"}}, {"num_hidden_layers": 10**6},
        {"torch_dtype": "no such dtype"}, {"rms_norm_eps": "small"}]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: next(iter(lie)))
def test_a_config_that_only_the_library_refuses(make_model, tmp_path, lie):
    folder = shutil.copytree(make_model("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **lie}))
    try:
        open_runner(folder)
    except InputError as error:
        assert str(folder) in str(error) and str(error).isprintable()


def test_an_artifact_without_its_schemes_is_refused(make_model, tmp_path):
    """transformers opens it, and fills the layers that it finds no weights for with random numbers."""
    folder = build_variant(make_model("llama"), "quant", {"bits": 4, "group_size": 32}, tmp_path / "int4")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    with pytest.raises(InputError, match=r"has nothing to load into model\.layers\.0\.\S+ and \d+ more"):
        open_runner(folder)


def test_an_error_of_the_library_names_the_folder():
    with pytest.raises(InputError, match=r"^models/x can't be opened by transformers \(JSONDecodeError: "), \
            opened_by_transformers("models/x"):
        json.loads("{")


def test_a_bug_of_this_project_stays_one():
    from quant.tensor.packing import pack

    with pytest.raises(Exception) as raised, opened_by_transformers("models/x"):
        pack(None, None)
    assert not isinstance(raised.value, InputError)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("can't allocate memory")])
def test_an_error_of_the_machine_is_told_by_another(error):
    with pytest.raises(type(error)), opened_by_transformers("models/x"):
        raise error


def copied(runtimes, tmp_path, change=None):
    """The GGUF file of `runtimes`, without the manifest that lists it, in a folder of its own."""
    folder = shutil.copytree(runtimes["gguf-q8_0"], tmp_path / "gguf")
    data = bytearray((folder / "model.gguf").read_bytes())
    if change:
        change(data)
    (folder / "model.gguf").write_bytes(data)
    (folder / "manifest.json").write_text('{"runtime": "llama_cpp"}')
    return folder


@pytest.mark.slow
def test_a_gguf_that_no_manifest_lists_is_tried_in_a_child(runtimes, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr("quant.runners.runtimes.llama_cpp.try_in_child", tried.append)
    assert open_runner(runtimes["gguf-q8_0"]).vocabulary and not tried, "its manifest lists it"
    folder = copied(runtimes, tmp_path)
    assert open_runner(folder).vocabulary and tried == [folder / "model.gguf"]


@pytest.mark.slow
def test_a_gguf_with_another_byte_than_its_manifest_lists_never_reaches_llama_cpp(runtimes, tmp_path, monkeypatch):
    folder = shutil.copytree(runtimes["gguf-q8_0"], tmp_path / "gguf")
    data = bytearray((folder / "model.gguf").read_bytes())
    data[824] ^= 1
    (folder / "model.gguf").write_bytes(data)
    monkeypatch.setattr("quant.runners.runtimes.llama_cpp.bindings", None)
    with pytest.raises(InputError, match="is not the file that its manifest lists \\(another sha256\\)"):
        open_runner(folder)


@pytest.mark.slow
def test_a_gguf_that_may_abort_is_one_line(runtimes, tmp_path):
    """Two equal tokens, at which llama.cpp ends its process; a file cut in its tensors; one that is whole."""

    def twice(data):
        first, second = (b"\1\0\0\0\0\0\0\0%c" % byte for byte in b"#$")  # strings of one character
        assert data.count(second) == 1
        at = data.index(second)
        data[at : at + len(first)] = first

    broken = copied(runtimes, tmp_path / "a", twice)
    script = f"from quant.command import run; from quant.runners import open_runner; run(lambda _: open_runner({str(broken)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: llama.cpp ") and "make it again with dvc repro" in done.stderr, done.stderr
    with pytest.raises(InputError, match=r"llama\.cpp can't load"):
        open_runner(copied(runtimes, tmp_path / "b", lambda data: data.__delitem__(slice(-4096, None))))
    assert open_runner(copied(runtimes, tmp_path / "c")).vocabulary


@pytest.mark.parametrize(("code", "words"), [
    ("import os; os.abort()", "SIGABRT"), ("import sys; sys.exit(1)", "can't load"), ("import time; time.sleep(9)", "in 1 s"),
], ids=["abort", "refuse", "hang"])  # fmt: skip
def test_how_a_child_ends(monkeypatch, tmp_path, code, words):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(probe, "LONGEST", 1)
    with pytest.raises(InputError, match=words):
        probe.try_in_child(tmp_path / "model.gguf")
    assert signal.Signals["SIGABRT"] == 6


@pytest.mark.parametrize(("words", "line"), [
    ([], "the following arguments are required: file"), (["no/such"], "no/such does not exist"),
    (["README.md"], "README.md is not a GGUF file"),
])  # fmt: skip
def test_a_try_by_hand_is_one_line(words, line):
    done = subprocess.run([sys.executable, "-m", "quant.gguf.probe", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {line}") and len(done.stderr.splitlines()) == 1
