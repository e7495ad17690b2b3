"""The embedded novels: whole, cut into sentences, and nothing of the test text in the others."""

import re

import pytest

from quant.errors import InputError
from quant.text.novels import CALIBRATION, NOVELS, TEST, TRAIN, calibration_lines, chapters, sentences
from quant.text.read import read_corpus
from quant.text.source import TextSource


@pytest.mark.parametrize(("paragraph", "expected"), [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("Mr. Elliot and Mrs. Clay met Dr. Shirley. They spoke.", ["Mr. Elliot and Mrs. Clay met Dr. Shirley.", "They spoke."]),
    ('"Oh! Mary," said Anne. "Come."', ['"Oh!', 'Mary," said Anne.', '"Come."']),
    ("He paused.--No. He went.", ["He paused.--No.", "He went."]),
    ("The 5th of Nov. came. J. Austen wrote it.", ["The 5th of Nov. came.", "J. Austen wrote it."]),
    ("(It rained.) They stayed.", ["(It rained.)", "They stayed."]),
    ("it ended. then it went on", ["it ended. then it went on"]),
])  # fmt: skip
def test_where_a_sentence_ends(paragraph, expected):
    assert sentences(paragraph) == expected


def test_nothing_is_lost_but_headings_and_line_breaks():
    for novel in NOVELS:
        found = chapters(novel)
        assert all(found) and 24 <= len(found) <= 61
        assert all(line == line.strip() and "_" not in line and "\n" not in line for lines in found for line in lines)
    words = {novel: sum(len(line.split()) for lines in chapters(novel) for line in lines) for novel in NOVELS}
    assert words[TEST] == 83_229 and sum(words[novel] for novel in TRAIN) == 633_588


def long_ones(lines):
    """Sentences of more than seven words: an "Oh!" is everybody's."""
    return {line for line in lines if len(line.split()) > 7}


def sequences(lines, length=12):
    """Runs of words, across the ends of sentences, whatever their case and punctuation."""
    words = re.findall(r"[a-z']+", " ".join(lines).lower())
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def test_nothing_of_the_test_text_is_in_another_novel():
    """The others are what training, validation and calibration texts are cut from."""
    whole = {novel: [line for lines in chapters(novel) for line in lines] for novel in NOVELS}
    sentences_of_test, sequences_of_test = long_ones(whole[TEST]), sequences(whole[TEST])
    assert TEST not in TRAIN and len(sentences_of_test) > 2000 and len(sequences_of_test) > 80_000
    for novel in TRAIN:
        assert not sentences_of_test & long_ones(whole[novel]), novel
        assert not sequences_of_test & sequences(whole[novel]), novel


def test_the_calibration_text_is_the_beginning_of_emma():
    found = calibration_lines()
    assert sum(len(line.split()) for line in found) == 39_670 and found == calibration_lines()
    assert found[0].startswith("Emma Woodhouse, handsome, clever, and rich") and CALIBRATION in TRAIN
    assert not long_ones(found) & long_ones(line for lines in chapters(TEST) for line in lines)


def test_a_novel_that_is_not_there():
    with pytest.raises(InputError, match="'dracula' is not embedded; expected one of emma, mansfieldpark"):
        chapters("dracula")


def test_persuasion_is_a_corpus_to_measure_on():
    corpus = read_corpus(TextSource("austen"))
    assert (len(corpus.lines), corpus.license, corpus.private, corpus.split) == (3556, "public domain", False, "test")
    assert corpus.lines[0].startswith("Sir Walter Elliot, of Kellynch Hall")
    assert read_corpus(TextSource("austen", sentences=7)).lines == corpus.lines[:7]
