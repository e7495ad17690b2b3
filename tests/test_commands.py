"""Commands and stages that are called wrongly say in one line what they take."""

import pytest
from conftest import ROOT, run_stage

from quant.benches import schemes
from quant.benches import scoring as scoring_speed
from quant.benches import streaming as streaming_speed
from quant.errors import InputError
from quant.quality.protocol import ScoringProtocol
from quant.report import sweep
from quant.text.corpus import load_corpus


@pytest.mark.parametrize(("main", "words", "message"), [
    (sweep.main, [], "required: PARAMETER, VARIANT"),
    (schemes.main, ["int9", "x"], "no scheme's name contains int9 or x; they are int8 tensor, int8 row"),
    (scoring_speed.main, ["models/base", "many"], "rounds: 'many' is not a whole number of at least 1"),
    (scoring_speed.main, ["models/base", "0"], "rounds: '0' is not a whole number of at least 1"),
    (scoring_speed.main, ["a", "1", "b"], "unrecognized arguments: b"),
    (streaming_speed.main, ["large"], "gigabytes: invalid float value: 'large'"),
])  # fmt: skip
def test_words_that_can_not_be(main, words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        main(words)


@pytest.mark.parametrize(("main", "words", "message"), [
    (sweep.main, ["quant.bits", "whole"], r"no dvc\.yaml in .*; run this in the project's folder"),
    (schemes.main, [], r"no params\.yaml in .*; run this in the project's folder"),
    (scoring_speed.main, [], r"no params\.yaml in .*; run this in the project's folder"),
])  # fmt: skip
def test_another_folder(main, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(words)


def test_text_that_is_not_there_yet(tmp_path):
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
def test_a_stage_called_with_too_few_or_too_many_words(words, line):
    done = run_stage(*words, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.splitlines() == [line]
