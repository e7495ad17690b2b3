"""The embedded novels: whole, cut into sentences, and no sentence of the test text in the others."""

import pytest

from quant.errors import InputError
from quant.text.novels import NOVELS, TEST, TRAIN, chapters, sentences
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


def test_no_sentence_of_the_test_text_is_in_another_novel():
    """Of more than seven words: an "Oh!" is everybody's, and one short sentence is in two novels."""
    def long_ones(novel):
        return {line for lines in chapters(novel) for line in lines if len(line.split()) > 7}

    for novel in TRAIN:
        assert not long_ones(TEST) & long_ones(novel), novel


def test_a_novel_that_is_not_there():
    with pytest.raises(InputError, match="'dracula' is not embedded; expected one of emma, mansfieldpark"):
        chapters("dracula")


def test_persuasion_is_a_corpus_to_measure_on():
    corpus = read_corpus(TextSource("austen"))
    assert (len(corpus.lines), corpus.license, corpus.private, corpus.split) == (3556, "public domain", False, "test")
    assert corpus.lines[0].startswith("Sir Walter Elliot, of Kellynch Hall")
    assert read_corpus(TextSource("austen", sentences=7)).lines == corpus.lines[:7]
