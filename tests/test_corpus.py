"""Every source of text gives lines, or an error of one line."""

import hashlib
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT
from hub_server import Fault

from quant.errors import InputError
from quant.hub.download import fetch_file
from quant.text.corpus import Corpus, as_text, write_corpus
from quant.text.load import load_corpus
from quant.text.read import WIKITEXT2, count_lines, read_corpus
from quant.text.source import TextSource

PTB = ROOT.parent / "shared" / "data" / "ptb" / "ptb.test.txt"


def read(source, sentences=None):
    return read_corpus(TextSource(str(source), sentences=sentences))


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def test_a_file_is_its_lines(tmp_path):
    (tmp_path / "text.txt").write_text(" one two \n\n  \nthree <unk> é\n")
    corpus = read(tmp_path / "text.txt")
    assert corpus.lines == ("one two", "three <unk> é") and corpus.words == 5 + 2
    assert read(tmp_path / "text.txt", 1).lines == ("one two",)


@pytest.mark.parametrize("content", [b"one\r\ntwo\r\n", b"\xef\xbb\xbfone\ntwo", b"one\rtwo\r", "one\u2028two".encode()])
def test_line_ends_and_marks_of_other_systems_are_no_text(tmp_path, content):
    """Windows, old Mac and Unicode line ends, and the mark that Windows puts before UTF-8."""
    (tmp_path / "text.txt").write_bytes(content)
    assert read(tmp_path / "text.txt").lines == ("one", "two") and count_lines(str(tmp_path / "text.txt")) == 2


def test_a_line_of_many_megabytes_is_one_line(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"word " * 3_000_000 + b"\nend\n")
    corpus = read(tmp_path / "text.txt")
    assert (len(corpus.lines), corpus.words) == (2, 3_000_003)


def test_a_file_at_an_address_is_checked_and_refused_in_one_line(hub, tmp_path):
    """How the Penn Treebank comes, from a server of our own."""
    commit = hub.add("tiny/text", {"a.txt": b"one\ntwo\n"}, kind="dataset")
    url, out = f"{hub.endpoint}/datasets/tiny/text/resolve/{commit}/a.txt", tmp_path / "a.txt"
    assert fetch_file(url, hashlib.sha256(b"one\ntwo\n").hexdigest(), out).read_bytes() == b"one\ntwo\n"
    out.unlink()
    with pytest.raises(InputError, match=f"{url} has sha256 .*, expected {'0' * 64}; refused"):
        fetch_file(url, "0" * 64, out)
    assert not out.exists()
    hub.faults.append(Fault("GET *", times=1, cut_after=3))
    for address, message in [(url, "IncompleteRead"), (f"{url}t", "404"), ("http://127.0.0.1:1/a.txt", "refused")]:
        with pytest.raises(InputError, match=f"can't fetch {address}: .*{message}.*give the file's path"):
            fetch_file(address, "0" * 64, out)
        assert not out.exists()


def test_a_folder_is_its_text_files_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"{name}\n")
    assert read(tmp_path).lines == ("a.txt", "b.txt")


def test_written_and_loaded_it_is_the_same(tmp_path, capsys):
    corpus = read("grammar", 40)
    write_corpus(corpus, tmp_path / "eval", tmp_path / "private")
    assert load_corpus(tmp_path / "eval", tmp_path / "private") == corpus and not (tmp_path / "private").exists()
    assert corpus.floor_nats > 0
    about, manifest = (json.loads((tmp_path / "eval" / name).read_text()) for name in ("corpus.json", "manifest.json"))
    text = (tmp_path / "eval" / "lines.txt").read_bytes()
    assert (about["sentences"], about["words"], about["bytes"]) == (40, len(text.split()) + 40, len(text))
    assert {key: manifest[key] for key in ("sentences", "words", "bytes")} == {key: about[key] for key in
                                                                               ("sentences", "words", "bytes")}
    shown = capsys.readouterr().out
    assert f"40 lines, {about['words']} words, {len(text):,} bytes" in shown and "fewer than 3,000 lines" in shown


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"\n \n", "no line of text"),
    (b"fine\ncaf\xe9\n", "not UTF-8: line 2"),
])  # fmt: skip
def test_a_file_without_text_is_refused(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "text.txt")
    with pytest.raises(InputError, match=message):
        count_lines(str(tmp_path / "text.txt"))


@pytest.mark.parametrize(("source", "sentences", "message"), [
    ("no/such/file", None, "is not a file or folder here; expected grammar, austen, ptb"),
    ("grammar", 0, "data.sentences is 0"),
    ("grammar", "many", "data.sentences is 'many'"),
])  # fmt: skip
def test_a_source_that_is_none_is_refused(source, sentences, message):
    with pytest.raises(InputError, match=message):
        read(source, sentences)


@pytest.mark.parametrize(("values", "message"), [
    ({"source": "grammar", "tokn": "x"}, "unknown data key 'tokn'"),
    ({"source": "grammar", "split": "test"}, "data.split is 'test', but data.source is grammar; it is for hub:owner/name only"),
    ({"source": "hub:wikitext"}, "expected hub:owner/name"),
    ({"source": "hub:a/b", "revision": 1234}, "data.revision is 1234; expected text, in quotes"),
    ({"source": None}, "data.source is None"),
])  # fmt: skip
def test_a_section_that_does_not_fit_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        TextSource.from_dict(values)


def test_text_that_may_not_be_shared_is_kept_out_of_dvc_outputs(tmp_path):
    corpus = Corpus("elsewhere.txt", ("one two", "three"), license="LDC", private=True)
    out, private = tmp_path / "eval", tmp_path / "private"
    write_corpus(corpus, out, private)
    assert load_corpus(out, private) == corpus
    assert not any(b"three" in path.read_bytes() for path in out.iterdir()), "neither git nor DVC gets it"
    (kept,) = private.iterdir()
    kept.write_text("one two\nthree\nmore\n")
    with pytest.raises(InputError, match="has sha256"):
        load_corpus(out, private)
    kept.unlink()
    with pytest.raises(InputError, match=r"the text of elsewhere.txt may not be shared and is missing here; provide that file"):
        load_corpus(out, private)


@pytest.mark.skipif(not PTB.is_file(), reason="the Penn Treebank is not at hand")
def test_the_penn_treebank_is_recognized_whatever_its_path(tmp_path):
    (tmp_path / "mine.txt").write_bytes(PTB.read_bytes())
    corpus = read(tmp_path / "mine.txt", 3)
    assert corpus.private and "LDC" in corpus.license


@pytest.mark.slow
def test_a_dataset_of_the_hub_through_datasets(hub, hub_client, tmp_path):
    """Config, split, column and revision reach the real library; what does not fit is one line."""
    card = ("---\nlicense: cc-by-4.0\nconfigs:\n- config_name: raw\n  data_files:\n  - split: test\n    path: raw/test-*\n"
            "  - split: train\n    path: raw/train-*\n---\n")
    rows = {"sentence": [" one two \n", "", "three\nfour"], "label": [1, 2, 3]}
    files = {"README.md": card.encode(), "raw/test-00000-of-00001.parquet": parquet(**rows)}
    train = "raw/train-00000-of-00001.parquet"
    old, new = (hub.add("tiny/text", {**files, train: parquet(sentence=[word], label=[0])}, kind="dataset")
                for word in ("old", "new"))
    name = WIKITEXT2.name
    hub.add(WIKITEXT2.repo, {name: parquet(text=["not it"])}, kind="dataset")
    repository = hub.repositories["dataset", WIKITEXT2.repo]
    repository.commits[WIKITEXT2.commit] = hub.files(WIKITEXT2.repo, kind="dataset")
    pinned = parquet(text=[" = Title = \n", ""])
    commit = hub.add("tiny/pinned", {"test.parquet": pinned}, kind="dataset")
    for kind, content in {"nulls": b'{"text": null}\n{"text": "one"}\n{"text": null}\n', "bare": b"",
                          "broken": b'{"text": nope\n'}.items():
        hub.add(f"tiny/{kind}", {"train.jsonl": content}, kind="dataset")
    hub.add("tiny/script", {"script.py": b"raise SystemExit"}, kind="dataset")
    hub.add("tiny/gated", {"README.md": b"", "train.jsonl": b'{"text": "one"}'}, kind="dataset", token="none", gated=True)
    hub.faults.append(Fault("GET /datasets/tiny/nulls/resolve/*", status=503))

    def corpus(source, **values):
        return {"call": "corpus", "with": {"source": source, **values}}

    raw = {"config": "raw", "column": "sentence"}
    expected = [
        (corpus("hub:tiny/text", **raw), {"lines": ["one two", "three", "four"], "revision": new, "license": "cc-by-4.0"}),
        (corpus("hub:tiny/text", split="train", revision=old, **raw), {"lines": ["old"], "revision": old}),
        (corpus("hub:tiny/text", sentences=2, **raw), {"lines": ["one two", "three"]}),
        (corpus("hub:tiny/text", config="raw"), "no column of text called 'text'; set data.column to one of sentence"),
        (corpus("hub:tiny/text", config="row", column="sentence"), "config row, split test: BuilderConfig 'row' not found"),
        (corpus("hub:tiny/text", split="tost", **raw), "Bad split: tost. Available splits: ['test', 'train']"),
        (corpus("hub:tiny/none"), "asks for a login (401)"),
        (corpus("hub:tiny/nulls", split="train"), {"lines": ["one"]}),
        (corpus("hub:tiny/bare", split="train"), "config None, split train: it has no rows"),
        (corpus("hub:tiny/broken", split="train"), "JSON parse error"),
        (corpus("hub:tiny/script"), "Dataset scripts are no longer supported"),
        (corpus("hub:tiny/gated", split="train"), f"is gated (401): accept its terms at {hub.endpoint}/datasets/tiny/gated"),
        (corpus("wikitext2"), f"expected {WIKITEXT2.sha256}; refused"),
        ({"call": "rows", "with": {"repo": "tiny/pinned", "commit": commit, "name": "test.parquet",
                                   "sha256": hashlib.sha256(pinned).hexdigest()}}, [" = Title = \n", ""]),
    ]
    answers, printed = hub_client.call(hub.environment(tmp_path / "home"), *(step for step, _ in expected))
    for (_, wanted), answer in zip(expected, answers, strict=True):
        if isinstance(wanted, str):
            assert wanted in answer["error"] and "\n" not in answer["error"]
        elif isinstance(wanted, dict):
            assert {key: answer["value"][key] for key in wanted} == wanted
        else:
            assert answer["value"] == wanted
    assert f"main is commit {new}; to get the same text every time, pin it: -S data.revision={new}" in printed


@pytest.mark.skipif(not PTB.is_file(), reason="the Penn Treebank is not at hand")
def test_the_penn_treebank_has_its_known_counts():
    corpus = read(PTB)
    assert (len(corpus.lines), corpus.words) == (3761, 82_430)
    assert as_text(corpus.lines).encode() == PTB.read_bytes()
