"""Commands and stages with wrong arguments say in one line what they take, and at once."""

import subprocess
import sys

import pytest
from conftest import ROOT, run_stage

from quant.benches import precision as precision_bench
from quant.benches import schemes
from quant.benches import scoring as scoring_speed
from quant.benches import streaming as streaming_speed
from quant.errors import InputError
from quant.quality.protocol import ScoringProtocol
from quant.report import sweep
from quant.text.load import load_corpus


@pytest.mark.parametrize(("main", "words", "message"), [
    (sweep.main, [], "required: PARAMETER, VARIANT"),
    (schemes.main, ["int9", "x"], "no scheme's name contains int9 or x; they are int8 tensor, int8 row"),
    (scoring_speed.main, ["models/base", "many"], "rounds: 'many' is not a whole number of at least 1"),
    (scoring_speed.main, ["models/base", "0"], "rounds: '0' is not a whole number of at least 1"),
    (scoring_speed.main, ["a", "1", "b"], "unrecognized arguments: b"),
    (streaming_speed.main, ["large"], "gigabytes: invalid float value: 'large'"),
    (precision_bench.main, ["models/nothing"], "models/nothing holds no variant quantized by this project"),
    (precision_bench.main, ["models/embedded"], "models/embedded holds no variant quantized by this project"),
])  # fmt: skip
def test_refused_arguments(main, words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        main(words)


@pytest.mark.parametrize(("main", "words", "message"), [
    (sweep.main, ["quant.bits", "whole"], r"no dvc\.yaml in .*; run this in the project's folder"),
    (schemes.main, [], r"no params\.yaml in .*; run this in the project's folder"),
    (scoring_speed.main, [], r"no params\.yaml in .*; run this in the project's folder"),
    (precision_bench.main, [], r"no params\.yaml in .*; run this in the project's folder"),
])  # fmt: skip
def test_outside_the_project(main, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(words)


def test_a_missing_corpus(tmp_path):
    with pytest.raises(InputError, match="eval holds no text; run dvc repro download"):
        load_corpus(tmp_path / "eval", tmp_path / "private")


@pytest.mark.parametrize("values", [None, [1], "joined/1"])
def test_a_section_that_is_no_mapping(values):
    with pytest.raises(InputError, match=r"evaluate is .*; expected keys and values, of protocol, context"):
        ScoringProtocol.from_dict(values)


@pytest.mark.parametrize(("words", "line"), [
    (("evaluate",), "error: evaluate takes VARIANT; found none"),
    (("evaluate", "base", "nf4"), "error: evaluate takes VARIANT; found base nf4"),
    (("plot", "nf4"), "error: plot takes no arguments; found nf4"),
])  # fmt: skip
def test_a_stage_with_too_few_or_too_many_arguments(words, line):
    done = run_stage(*words, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.splitlines() == [line]


QUICK = """
import contextlib, io, sys
from quant import check, export, select
from quant.errors import InputError
for main, *wrong in ((check.main, ["gpt2"], ["a", "b", "c"]), (select.main, [], ["models/embedded", "nope"]),
                     (export.main, [], ["models/embedded", "out"], ["no/folder", "out", "--format", "compressed-tensors"])):
    for arguments in (["--help"], *wrong):
        with contextlib.suppress(SystemExit, InputError), contextlib.redirect_stdout(io.StringIO()):
            main(arguments)
            raise RuntimeError(f"{arguments} were accepted")
print(sorted({"torch", "transformers", "huggingface_hub"} & set(sys.modules)))
"""


def test_help_and_refused_arguments_answer_before_anything_heavy_is_imported():
    done = subprocess.run([sys.executable, "-c", QUICK], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_a_reader_that_has_enough_ends_a_command_quietly():
    done = subprocess.run(f"{sys.executable} -m quant.select models/embedded selective | head -1", shell=True, cwd=ROOT,
                          capture_output=True, text=True)
    assert done.stdout.startswith("module") and not done.stderr
