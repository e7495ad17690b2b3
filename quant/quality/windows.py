"""Tokenizes a corpus, and cuts its tokens into the windows of a scoring protocol (quant.quality.protocol)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy
import torch

from quant.errors import InputError
from quant.model.config import open_tokenizer_file, translating_tokenizers
from quant.model.opening import opened_by_transformers
from quant.outside import read_json
from quant.quality.protocol import ScoringProtocol
from quant.text.corpus import Corpus, as_text


@dataclass(frozen=True)
class Tokens:
    """A tokenized corpus.

    ids, bytes, words: int64 [n]; bytes of text that a token stands for, and words that end in it. starts: positions where a
    separate text begins; its first token is only context. restart: token that replaces the first one of a llama.cpp/1 chunk,
    or None. text_sha256: of the text.
    """

    ids: torch.Tensor
    bytes: torch.Tensor
    words: torch.Tensor
    starts: tuple[int, ...] = (0,)
    restart: int | None = None
    text_sha256: str = ""

    @cached_property
    def sha256(self) -> str:
        return sha256(self.ids.to(torch.int32).numpy().tobytes()).hexdigest()

    def places(self, scored: torch.Tensor) -> Places:
        """Where the scored tokens stand in the text. scored: bool [n]."""
        begins = self.bytes.cumsum(0) - self.bytes
        left_out = ~scored & (self.bytes > 0) & (begins > 0)  # nothing predicts the first token; every protocol may miss it
        digest, is_whole = self.text_sha256, not bool(left_out.any())
        if not is_whole:
            digest = sha256(digest.encode() + begins[left_out].numpy().tobytes()).hexdigest()
        with_bytes = torch.arange(len(self.ids)).where(self.bytes > 0, 0).cummax(0).values
        begins = begins[with_bytes]  # a token without bytes of its own completes the character of the one before
        return Places(begins[scored].numpy(), self.bytes[scored].numpy(), int(self.bytes.sum()), digest, is_whole)


@dataclass(frozen=True)
class Places:
    """Where scored tokens stand in a text.

    begins, bytes: int64 [scored], where a token's bytes begin and their number. text_bytes: of the whole text. is_whole: whether
    every token is scored, but for the first. text_sha256: of the text that is scored. It is the same for two tokenizers where
    both score the whole text, and differs where a protocol leaves out parts that depend on the tokenizer.
    """

    begins: numpy.ndarray
    bytes: numpy.ndarray
    text_bytes: int
    text_sha256: str
    is_whole: bool


@dataclass(frozen=True)
class Window:
    """One call of a model: inputs [length] predict targets [length], which are the tokens first, first + 1, ... of the text; the
    last `scored` of them are scored."""

    inputs: torch.Tensor
    targets: torch.Tensor
    first: int
    scored: int

    @property
    def length(self) -> int:
        return len(self.inputs)

    @property
    def scored_tokens(self) -> slice:
        """Positions of the scored tokens in the text."""
        stop = self.first + self.length
        return slice(stop - self.scored, stop)


def windows(tokens: Tokens, protocol: ScoringProtocol, context: int) -> list[Window]:
    """The windows of a protocol, in text order. context: the model's limit in tokens, which caps the protocol's.

    Raises InputError where the text is shorter than a chunk of llama.cpp/1.
    """
    length, stride = min(protocol.context, context), min(protocol.stride, context)
    if protocol.name == "llama.cpp":
        return _chunks(tokens, length)
    stops = (*tokens.starts[1:], len(tokens.ids))
    return [window for start, stop in zip(tokens.starts, stops, strict=True)
            for window in _sliding(tokens.ids, start, stop - 1, length, stride)]


def _sliding(ids: torch.Tensor, begin: int, end: int, length: int, stride: int) -> list[Window]:
    """Windows over the inputs [begin, end) of one text; each input predicts the next token."""
    found, reached = [], begin
    for start in range(begin, end, stride):
        stop = min(start + length, end)
        found.append(Window(ids[start:stop], ids[start + 1 : stop + 1], start + 1, stop - reached))
        reached = stop
        if stop == end:
            break
    return found


def _chunks(tokens: Tokens, length: int) -> list[Window]:
    if length < 4 or len(tokens.ids) < length:
        raise InputError(f"the corpus has {len(tokens.ids)} tokens; llama.cpp/1 needs a chunk of {max(4, length)}: "
                         "give it more text, or make evaluate.context smaller")
    found = []
    for start in range(0, len(tokens.ids) - length + 1, length):
        inputs = tokens.ids[start : start + length - 1]
        if tokens.restart is not None:
            inputs = torch.cat([torch.tensor([tokens.restart]), inputs[1:]])
        found.append(Window(inputs, tokens.ids[start + 1 : start + length], start + 1, length - 1 - length // 2))
    return found


def tokenize(corpus: Corpus, tokenizer_folder: Path, protocol: ScoringProtocol) -> Tokens:
    """Tokenize the corpus as the protocol asks. Raises InputError where the tokenizer or the text does not fit the protocol."""
    folder = Path(tokenizer_folder)
    tokenizer = open_tokenizer(folder)
    tokenizer.encode_special_tokens = protocol.unk == "text"
    start = _beginning(folder, tokenizer)
    if protocol.name == "sentence" and start is None:
        raise InputError("the tokenizer has no beginning-of-text token, which sentence/1 puts before each line; "
                         "set evaluate.protocol to joined/1")
    restart = start if protocol.name == "llama.cpp" and _adds_beginning(tokenizer, start) else None
    if protocol.name == "llama.cpp":
        start = restart
    groups = [[line] for line in corpus.lines] if protocol.name == "sentence" else [corpus.lines]
    texts = [as_text(lines, protocol.line) for lines in groups]
    ids, sizes, words, starts = [], [], [], []
    with translating_tokenizers(f"{folder}: its tokenizer can't encode the text"):
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, lines, encoding in zip(texts, groups, encodings, strict=True):
        starts.append(len(ids))
        given = [] if start is None else [start]
        ends = numpy.maximum.accumulate([0, *(end for _, end in encoding.offsets)])
        ends[-1] = len(text)  # offsets of some tokenizers leave out spaces
        ids += given + encoding.ids
        sizes += [0] * len(given) + numpy.diff(_bytes_before(text)[ends]).tolist()
        words += [0] * len(given) + numpy.diff(numpy.searchsorted(_word_ends(lines, protocol.line), ends, "right")).tolist()
    if len(ids) < len(starts) + 1:
        raise InputError("the corpus has fewer than two tokens, so there is nothing to predict; give it more text")
    digest = sha256("".join(texts).encode()).hexdigest()
    return Tokens(torch.tensor(ids), torch.tensor(sizes), torch.tensor(words), tuple(starts), restart, digest)


def _bytes_before(text: str) -> numpy.ndarray:
    """Number of UTF-8 bytes before each character, and in all: int64 [characters + 1]."""
    points = numpy.frombuffer(text.encode("utf-32-le"), dtype=numpy.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(numpy.int64)
    return numpy.concatenate([[0], numpy.cumsum(sizes)])


def _word_ends(lines, template: str) -> list[int]:
    """Positions in the text where words end. The end of a line counts as a word, as in the Penn Treebank, unless it is empty."""
    before, after = template.split("{}")
    ends, at = [], 0
    for line in lines:
        at += len(before)
        ends += [at + match.end() for match in re.finditer(r"\S+", line)]
        at += len(line) + len(after)
        if after:
            ends.append(at)
    return ends


def open_tokenizer(folder: Path):
    """The folder's tokenizer as a tokenizers.Tokenizer, which gives the span of each token. Raises InputError for others."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return open_tokenizer_file(path)
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; make it with dvc repro")
    from transformers import AutoTokenizer

    with opened_by_transformers(folder):
        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer = getattr(slow, "backend_tokenizer", None)
    if tokenizer is None:
        raise InputError(f"{folder} has no tokenizer.json and none can be made from its files; save one with "
                         "AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    return tokenizer


def _beginning(folder: Path, tokenizer) -> int | None:
    """Id of the beginning-of-text token of tokenizer_config.json, or None."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    token = read_json(path).get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return None if token is None else tokenizer.token_to_id(token)


def _adds_beginning(tokenizer, start: int | None) -> bool:
    """Whether the tokenizer adds the beginning-of-text token by itself, as Llama's does and GPT-2's does not."""
    with translating_tokenizers("the tokenizer can't encode the letter a"):
        return start is not None and tokenizer.encode("a").ids[:1] == [start]
