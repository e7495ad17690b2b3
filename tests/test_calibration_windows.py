"""The windows to calibrate on: which, how many, and none of what is measured."""

import numpy
import pytest
import torch
from conftest import EMBEDDED

from quant.calibration import windows
from quant.calibration.plan import CalibrationPlan
from quant.calibration.windows import MOST_SHARED, PASSAGE, choose_windows
from quant.errors import InputError
from quant.quality.windows import open_tokenizer
from quant.text.corpus import Corpus, as_text
from quant.text.read import read_corpus, training_corpus
from quant.text.source import TextSource

LINE = " {} \n"
WORDS = "the of to in and that for is said it on by at as with from he was be are have has its an not or but they company".split()


def text(seed, lines=400, words=12):
    rng = numpy.random.default_rng(seed)
    return tuple(" ".join(rng.choice(WORDS, words)) for _ in range(lines))


CALIBRATION, EVALUATED = Corpus("one.txt", text(0)), Corpus("two.txt", text(1))


def chosen(calibration=CALIBRATION, evaluated=EVALUATED, context=256, **plan):
    plan = CalibrationPlan(**{"windows": 8, "length": 64, **plan})
    return choose_windows(calibration, evaluated, plan, EMBEDDED, context, LINE)


def ids_of(corpus):
    return open_tokenizer(EMBEDDED).encode(as_text(corpus.lines, LINE), add_special_tokens=False).ids


def test_windows_are_pieces_of_the_text_in_its_order_without_repetition():
    found, ids = chosen(), ids_of(CALIBRATION)
    assert found.shape == (8, 64) and found.dtype == torch.int64
    pieces = [ids[start : start + 64] for start in range(0, len(ids) - 63, 64)]
    places = [pieces.index(window) for window in found.tolist()]
    assert places == sorted(set(places))


def test_the_seed_chooses_and_the_same_seed_chooses_the_same():
    assert torch.equal(chosen(seed=3), chosen(seed=3)) and not torch.equal(chosen(seed=3), chosen(seed=4))


def test_the_context_of_the_model_caps_the_length():
    assert chosen(context=40).shape == (8, 40) and chosen(context=256, length=16).shape == (8, 16)


def test_a_text_with_fewer_windows_gives_all_of_them():
    count = len(ids_of(CALIBRATION)) // 64
    assert chosen(windows=10_000).shape == (count, 64) and torch.equal(chosen(windows=count), chosen(windows=count + 1))


def test_a_text_shorter_than_a_window_is_told():
    with pytest.raises(InputError, match=r"one\.txt has \d+ tokens, fewer than a window of 64; set calibration\.text to a"):
        chosen(Corpus("one.txt", CALIBRATION.lines[:2]))


@pytest.mark.parametrize("share", ["the same text", "its last tenth", "its middle within another text"])
def test_a_text_that_overlaps_the_evaluated_one_is_refused(share):
    lines = CALIBRATION.lines
    other = {"the same text": lines, "its last tenth": EVALUATED.lines + lines[-40:],
             "its middle within another text": EVALUATED.lines[:50] + lines[100:200] + EVALUATED.lines[50:]}[share]
    with pytest.raises(InputError, match=r"\d+ of \d+ windows of the calibration text one\.txt share a passage of 32 tokens with "
                                         r"the evaluated text two\.txt: .*set calibration\.text to another text"):
        chosen(evaluated=Corpus("two.txt", other))


def test_windows_that_share_a_passage_are_left_out_where_they_are_few():
    """A quotation, an epigraph: the text may still be used without it."""
    ids = ids_of(CALIBRATION)
    count = len(ids) // 64
    quoted = CALIBRATION.lines[200:204]
    found = chosen(evaluated=Corpus("two.txt", EVALUATED.lines + quoted), windows=10_000)
    assert count * (1 - MOST_SHARED) <= len(found) < count
    every = chosen(windows=10_000).tolist()
    left_out = [window for window in every if window not in found.tolist()]
    passages = {tuple(p) for e in [ids_of(Corpus("q", EVALUATED.lines + quoted))] for p in zip(*(e[i:] for i in range(PASSAGE)),
                                                                                              strict=False)}
    for window in every:
        is_shared = any(tuple(window[i : i + PASSAGE]) in passages for i in range(64 - PASSAGE + 1))
        assert is_shared == (window in left_out)


def test_shared_runs_shorter_than_a_passage_do_not_matter():
    row = numpy.arange(64)[None]
    for size, expected in ((PASSAGE - 1, False), (PASSAGE, True)):
        evaluated = numpy.concatenate([[900, 901], row[0, 20 : 20 + size], [902, 903]])
        assert windows._shares_passage(row, evaluated).tolist() == [expected]
    assert windows._shares_passage(row[:, :10], numpy.arange(5, 12)).tolist() == [False]  # windows shorter than a passage
    assert windows._shares_passage(row[:, :10], numpy.arange(0, 12)).tolist() == [True]


def test_no_window_of_the_calibration_text_of_austen_holds_a_passage_of_persuasion():
    persuasion, emma = read_corpus(TextSource("austen")), training_corpus(TextSource("austen"), None)
    found = chosen(emma, persuasion, windows=10_000)
    assert found.numel() > 40_000
    ids = ids_of(persuasion)
    passages = {tuple(ids[i : i + PASSAGE]) for i in range(len(ids) - PASSAGE + 1)}
    assert not any(tuple(window[i : i + PASSAGE]) in passages for window in found.tolist() for i in range(64 - PASSAGE + 1))
    with pytest.raises(InputError, match="share a passage"):
        chosen(persuasion, persuasion)


@pytest.mark.parametrize(("values", "message"), [
    ({"windows": 0}, r"calibration\.windows is 0; expected a whole number from 1"),
    ({"length": 7}, r"calibration\.length is 7; expected a whole number from 8"),
    ({"seed": -1}, r"calibration\.seed is -1"), ({"windows": True}, r"windows is True"), ({"length": 64.0}, r"length is 64\.0"),
    ({"text": 3}, r"calibration\.text is 3; expected the name of a text, a path, or null"),
    ({"lenght": 64}, r"unknown calibration key 'lenght'; known: text, windows, length, seed"),
])  # fmt: skip
def test_a_wrong_plan_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        CalibrationPlan.from_dict(values)
