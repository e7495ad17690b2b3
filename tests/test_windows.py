"""Every protocol scores the tokens it says it scores, and counts their words and bytes exactly."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import InputError
from quant.quality.protocol import ScoringProtocol
from quant.quality.windows import Tokens, open_tokenizer, tokenize, windows
from quant.text.corpus import Corpus

LINES = ("the <unk> fund rose N %", "naïve 我想 ✅ traders", "x")


def plain(count, starts=(0,), restart=None):
    ones = torch.ones(count, dtype=torch.int64)
    return Tokens(torch.arange(count), ones, ones, starts, restart)


def scored(found):
    """The tokens that windows score, in order; that each window's slice names the same is checked on the way."""
    out = []
    for window in found:
        targets = window.targets[window.length - window.scored :].tolist()
        assert targets == list(range(*window.scored_tokens.indices(10**6)))
        out += targets
    return out


@given(count=st.integers(2, 90), context=st.integers(1, 20), data=st.data())
def test_joined_scores_every_token_once(count, context, data):
    stride = data.draw(st.integers(1, context))
    found = windows(plain(count), ScoringProtocol(context=context, stride=stride), 16)
    assert scored(found) == list(range(1, count))
    assert all(window.length <= min(16, context) for window in found)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), context=st.integers(1, 20), data=st.data())
def test_sentence_scores_every_token_but_the_first_of_each_line(lengths, context, data):
    stride = data.draw(st.integers(1, context))
    starts = tuple(sum(lengths[:i]) for i in range(len(lengths)))
    found = windows(plain(sum(lengths), starts), ScoringProtocol("sentence/1", context=context, stride=stride), 16)
    assert scored(found) == [i for i in range(sum(lengths)) if i not in starts]
    for window in found:  # none reaches over the beginning of a line
        assert not any(window.inputs[0] < start <= window.targets[-1] for start in starts)


@pytest.mark.parametrize(("context", "count"), [(8, 40), (9, 40), (512, 1100)])
def test_llama_cpp_scores_the_second_half_of_each_chunk(context, count):
    """As the loop of llama-perplexity has it: logits of positions n_ctx/2 .. n_ctx - 2 of each whole chunk."""
    expected = [start + j + 1 for start in range(0, count - context + 1, context) for j in range(context // 2, context - 1)]
    assert scored(windows(plain(count), ScoringProtocol("llama.cpp/1", context=context, stride=1), 10**6)) == expected


def test_llama_cpp_puts_the_beginning_token_first_in_each_chunk():
    inputs = [window.inputs.tolist() for window in windows(plain(24, restart=99), ScoringProtocol("llama.cpp/1", 8, 8), 100)]
    assert inputs == [[99, *range(start + 1, start + 7)] for start in (0, 8, 16)]


@pytest.fixture(scope="module")
def folder():
    from conftest import EMBEDDED

    return EMBEDDED


@pytest.mark.parametrize("protocol", ["joined/1", "sentence/1", "llama.cpp/1"])
def test_words_and_bytes_are_those_of_the_text(folder, protocol):
    corpus = Corpus("grammar", LINES)
    tokens = tokenize(corpus, folder, ScoringProtocol(protocol))
    text = "".join(f" {line} \n" for line in LINES)
    assert int(tokens.bytes.sum()) == len(text.encode()) and int(tokens.words.sum()) == corpus.words
    assert len(tokens.starts) == (3 if protocol == "sentence/1" else 1)


def test_a_part_of_the_text_counts_its_part_alone(folder):
    """Tokens of "a b c" counted up to each word: its bytes and words so far."""
    tokens = tokenize(Corpus("x", ("share rose today",)), folder, ScoringProtocol(line=" {} \n"))
    ends, size, words = [], 0, 0
    for i in range(len(tokens.ids)):
        size, words = size + int(tokens.bytes[i]), words + int(tokens.words[i])
        ends.append((size, words))
    text = " share rose today \n"
    for word, number in (("share", 1), ("rose", 2), ("today", 3)):
        assert (text.index(word) + len(word), number) in ends
    assert ends[-1] == (len(text), 4)


@pytest.mark.parametrize("protocol", ["joined/1", "sentence/1"])
def test_tokens_know_where_they_begin_in_the_text(folder, protocol):
    """The tokenizer's own spans, in bytes; of a character in several tokens the first has all bytes, and all begin with it."""
    tokens = tokenize(Corpus("x", LINES), folder, ScoringProtocol(protocol))
    begins = [0]
    for line in LINES:
        text, before = f" {line} \n", begins.pop()
        spans = open_tokenizer(folder).encode(text, add_special_tokens=False).offsets
        begins += [before + len(text[:start].encode()) for start, _ in spans] + [before + len(text.encode())]
    places = tokens.places(tokens.ids != 0)  # all but the beginnings of texts
    assert places.begins.tolist() == begins[:-1] and places.is_whole
    assert places.text_bytes == begins[-1] == places.bytes.sum()


def test_places_tell_whether_the_whole_text_is_scored():
    bytes = torch.tensor([0, 3, 2, 0, 4])
    tokens = Tokens(torch.arange(5), bytes, bytes, text_sha256="a text")
    every = tokens.places(torch.tensor([False, True, True, True, True]))
    assert every.is_whole and every.text_sha256 == "a text" and every.begins.tolist() == [0, 3, 3, 5]
    without_first = tokens.places(torch.tensor([False, False, True, True, True]))
    assert without_first.is_whole and without_first.text_sha256 == "a text" and without_first.text_bytes == 9
    some = ([False, True, False, False, True], [False, True, True, True, False])
    parts = [tokens.places(torch.tensor(scored)) for scored in some]
    assert not any(part.is_whole for part in parts) and len({"a text", *(part.text_sha256 for part in parts)}) == 3


def test_two_tokenizers_score_the_same_text_unless_the_protocol_leaves_out_parts(folder, tmp_path):
    with_unk(folder, tmp_path)
    corpus, found = Corpus("x", LINES * 4), {}
    for protocol in ("joined/1", "llama.cpp/1"):
        for unk, place in (("text", folder), ("token", tmp_path)):
            tokens = tokenize(corpus, place, ScoringProtocol(protocol, unk=unk))
            scored = torch.zeros(len(tokens.ids), dtype=torch.bool)
            for window in windows(tokens, ScoringProtocol(protocol, context=16, stride=16), 16):
                scored[window.scored_tokens] = True
            found[protocol, unk] = tokens.places(scored)
    assert found["joined/1", "text"].text_sha256 == found["joined/1", "token"].text_sha256
    assert found["llama.cpp/1", "text"].text_sha256 != found["llama.cpp/1", "token"].text_sha256


def test_a_line_form_without_an_end_counts_no_end(folder):
    tokens = tokenize(Corpus("x", ("share rose", "today")), folder, ScoringProtocol("sentence/1", line="{}"))
    assert int(tokens.words.sum()) == 3 and int(tokens.bytes.sum()) == len("share rosetoday")


def test_sentence_is_each_line_alone_after_the_beginning(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = tokenizer.token_to_id("<|endoftext|>")
    tokens = tokenize(Corpus("x", ("share rose", "today")), folder, ScoringProtocol("sentence/1"))
    alone = [[start, *tokenizer.encode(f" {line} \n", add_special_tokens=False).ids] for line in ("share rose", "today")]
    assert tokens.ids.tolist() == alone[0] + alone[1] and tokens.starts == (0, len(alone[0]))


def with_unk(folder, out):
    """The tokenizer with `<unk>` as a special token, as many models have it, and one that adds its beginning by itself."""
    values = json.loads((folder / "tokenizer.json").read_text())
    size = 1 + max(values["model"]["vocab"].values())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values["added_tokens"].append({"id": size, "content": "<unk>", **special})
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    (out / "tokenizer.json").write_text(json.dumps(values))
    (out / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    return size


def test_unk_is_text_or_a_token_as_asked(folder, tmp_path):
    special = with_unk(folder, tmp_path)
    spelled, one = (tokenize(Corpus("x", LINES), tmp_path, ScoringProtocol(unk=unk)) for unk in ("text", "token"))
    assert special not in spelled.ids and (one.ids == special).sum() == 1
    assert spelled.sha256 != one.sha256 and spelled.bytes.sum() == one.bytes.sum()


def test_llama_cpp_starts_with_the_beginning_only_where_the_tokenizer_does(folder, tmp_path):
    with_unk(folder, tmp_path)
    corpus, protocol = Corpus("x", LINES), ScoringProtocol("llama.cpp/1")
    without, with_it = (tokenize(corpus, place, protocol) for place in (folder, tmp_path))
    assert without.restart is None and with_it.restart == 0
    assert with_it.ids.tolist() == [0, *without.ids.tolist()]


def test_sentence_needs_a_beginning_token(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match=r"no beginning-of-text token.*joined/1"):
        tokenize(Corpus("x", LINES), tmp_path, ScoringProtocol("sentence/1"))


@pytest.mark.parametrize(("values", "message"), [
    ({"protocol": "joined"}, r"evaluate\.protocol is 'joined'; expected joined/1, sentence/1, llama\.cpp/1"),
    ({"stride": 300}, r"stride 300 exceeds evaluate\.context 256"),
    ({"context": 0}, r"context is 0"),
    ({"unk": "skip"}, r"unk is 'skip'; expected text or token"),
    ({"line": "x"}, "expected a text with one {}"),
    ({"protocol": "llama.cpp/1", "context": 3, "stride": 1}, "chunks of at least 4"),
    ({"typo": 1}, "unknown evaluate key 'typo'"),
])  # fmt: skip
def test_an_impossible_protocol_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        ScoringProtocol.from_dict(values)


def test_too_little_text_for_a_chunk_is_refused():
    with pytest.raises(InputError, match=r"the corpus has 20 tokens; llama\.cpp/1 needs a chunk of 64"):
        windows(plain(20), ScoringProtocol("llama.cpp/1", context=512, stride=1), 64)
