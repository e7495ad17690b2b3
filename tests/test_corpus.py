"""Text comes in as lines, whatever its source, or with one clear sentence not at all."""

import pytest
from conftest import ROOT

from quant.corpus import as_text, load_corpus, read_corpus, write_corpus
from quant.errors import InputError

PTB = ROOT.parent / "shared" / "data" / "ptb" / "ptb.test.txt"


def test_a_file_is_its_lines(tmp_path):
    (tmp_path / "text.txt").write_text(" one two \n\n  \nthree <unk> é\n")
    corpus = read_corpus(str(tmp_path / "text.txt"), None)
    assert corpus.lines == ("one two", "three <unk> é") and corpus.words == 5 + 2
    assert read_corpus(str(tmp_path / "text.txt"), 1).lines == ("one two",)


def test_a_folder_is_its_text_files_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"{name}\n")
    assert read_corpus(str(tmp_path), None).lines == ("a.txt", "b.txt")


def test_written_and_loaded_it_is_the_same(tmp_path):
    corpus = read_corpus("grammar", 40)
    write_corpus(corpus, tmp_path / "eval")
    assert load_corpus(tmp_path / "eval") == corpus
    assert corpus.floor_nats > 0


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"\n \n", "no line of text"),
    (b"fine\ncaf\xe9\n", "not UTF-8: line 2"),
])  # fmt: skip
def test_a_file_without_text_is_refused(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_corpus(str(tmp_path / "text.txt"), None)


@pytest.mark.parametrize(("source", "sentences", "message"), [
    ("no/such/file", None, "is no file or folder here; expected grammar, ptb"),
    ("grammar", 0, "data.sentences is 0"),
    ("grammar", "many", "data.sentences is 'many'"),
])  # fmt: skip
def test_a_source_that_is_none_is_refused(source, sentences, message):
    with pytest.raises(InputError, match=message):
        read_corpus(source, sentences)


@pytest.mark.skipif(not PTB.is_file(), reason="the Penn Treebank is not at hand")
def test_the_penn_treebank_has_its_known_counts():
    corpus = read_corpus(str(PTB), None)
    assert (len(corpus.lines), corpus.words) == (3761, 82_430)
    assert as_text(corpus.lines).encode() == PTB.read_bytes()
