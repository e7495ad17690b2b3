"""From lines to tokens to windows in which every token is scored at most once, by one of three protocols.

joined/1     The lines as one text, after the beginning-of-text token where the tokenizer has one, in windows of `context`
             tokens that advance by `stride`; a token is scored in the first window that reaches it. Every token is scored.
sentence/1   Each line alone after the beginning-of-text token; every token of it is scored. A line that is longer than the
             context goes on in windows that advance by `stride`.
llama.cpp/1  What llama-perplexity does: the text in chunks of `context` tokens without overlap, of which the second half
             is scored; the first token of a chunk gives way to the beginning-of-text token where the tokenizer adds
             one by itself; what is left over at the end is dropped.

A protocol whose numbers would change gets a new version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy
import torch

from quant.text.corpus import Corpus, as_text
from quant.errors import InputError
from quant.files import read_json
from quant.tensor.scheme import known_keys

PROTOCOLS = ("joined/1", "sentence/1", "llama.cpp/1")
UNK = ("text", "token")


@dataclass(frozen=True)
class Protocol:
    """protocol: one of PROTOCOLS; context, stride: tokens; line: the form a line takes in the text, {} its words.
    unk: "text" spells out special tokens that stand in the text (`<unk>`), "token" leaves them to the tokenizer."""

    protocol: str = "joined/1"
    context: int = 256
    stride: int = 256
    line: str = " {} \n"
    unk: str = "text"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(f"evaluate.protocol is {self.protocol!r}; expected {', '.join(PROTOCOLS)}")
        if self.unk not in UNK:
            raise InputError(f"evaluate.unk is {self.unk!r}; expected {' or '.join(UNK)}")
        for key in ("context", "stride"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"evaluate.{key} is {value!r}; expected a number of tokens from 1")
        if self.name == "llama.cpp" and self.context < 4:
            raise InputError(f"evaluate.context is {self.context}; {self.protocol} takes chunks of at least 4 tokens")
        if self.stride > self.context:
            raise InputError(f"evaluate.stride {self.stride} exceeds evaluate.context {self.context}: tokens would be skipped")
        if not isinstance(self.line, str) or self.line.count("{}") != 1:
            raise InputError(f"evaluate.line is {self.line!r}; expected a text with one {{}} for the line's words")

    @classmethod
    def from_dict(cls, values: dict) -> Protocol:
        return cls(**known_keys(cls, values, "evaluate"))

    @property
    def name(self) -> str:
        return self.protocol.partition("/")[0]

    @property
    def version(self) -> int:
        return int(self.protocol.partition("/")[2])

    def describe(self, context: int) -> dict:
        """What stands in a result; `context` is the most the model takes, and bounds the protocol's."""
        return {
            "name": self.name,
            "version": self.version,
            "context": min(self.context, context),
            "stride": None if self.name == "llama.cpp" else min(self.stride, context),
            "line": self.line,
            "join": None if self.name == "sentence" else "",
            "unk": self.unk,
        }


@dataclass(frozen=True)
class Tokens:
    """ids, bytes, words: int64 [n]; bytes of the text that a token brings, and words that end in it.
    starts: where a text of its own begins; its first token is only context.
    restart: token to put first in a chunk that begins inside the text, or None."""

    ids: torch.Tensor
    bytes: torch.Tensor
    words: torch.Tensor
    starts: tuple[int, ...] = (0,)
    restart: int | None = None

    @cached_property
    def sha256(self) -> str:
        return sha256(self.ids.to(torch.int32).numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Window:
    """inputs [length] predict targets [length], which are tokens first, first + 1, ... of the text; the last `scored` count."""

    inputs: torch.Tensor
    targets: torch.Tensor
    first: int
    scored: int

    @property
    def length(self) -> int:
        return len(self.inputs)

    @property
    def scored_tokens(self) -> slice:
        """Which tokens of the text it scores."""
        stop = self.first + self.length
        return slice(stop - self.scored, stop)


def windows(tokens: Tokens, protocol: Protocol, context: int) -> list[Window]:
    """Windows over the tokens in text order; `context` is the most the model takes, and bounds the protocol's."""
    length, stride = min(protocol.context, context), min(protocol.stride, context)
    if protocol.name == "llama.cpp":
        return _chunks(tokens, length)
    stops = (*tokens.starts[1:], len(tokens.ids))
    return [window for start, stop in zip(tokens.starts, stops, strict=True)
            for window in _sliding(tokens.ids, start, stop - 1, length, stride)]


def _sliding(ids: torch.Tensor, begin: int, end: int, length: int, stride: int) -> list[Window]:
    """Windows over the inputs [begin, end): every position but a text's last predicts its successor."""
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
                         "take more text, or make evaluate.context smaller")
    found = []
    for start in range(0, len(tokens.ids) - length + 1, length):
        inputs = tokens.ids[start : start + length - 1]
        if tokens.restart is not None:
            inputs = torch.cat([torch.tensor([tokens.restart]), inputs[1:]])
        found.append(Window(inputs, tokens.ids[start + 1 : start + length], start + 1, length - 1 - length // 2))
    return found


def tokenize(corpus: Corpus, tokenizer_folder: Path, protocol: Protocol) -> Tokens:
    """The corpus as token ids, as the protocol takes it."""
    folder = Path(tokenizer_folder)
    tokenizer = open_tokenizer(folder)
    tokenizer.encode_special_tokens = protocol.unk == "text"
    start = _beginning(folder, tokenizer)
    if protocol.name == "sentence" and start is None:
        raise InputError("the tokenizer has no beginning-of-text token, after which sentence/1 puts each line; "
                         "take evaluate.protocol joined/1")
    restart = start if protocol.name == "llama.cpp" and _adds_beginning(tokenizer, start) else None
    if protocol.name == "llama.cpp":
        start = restart
    groups = [[line] for line in corpus.lines] if protocol.name == "sentence" else [corpus.lines]
    texts = [as_text(lines, protocol.line) for lines in groups]
    ids, sizes, words, starts = [], [], [], []
    for text, lines, encoding in zip(texts, groups, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        starts.append(len(ids))
        given = [] if start is None else [start]
        ends = numpy.maximum.accumulate([0, *(end for _, end in encoding.offsets)])
        ends[-1] = len(text)  # some tokenizers leave blanks out of the offsets
        ids += given + encoding.ids
        sizes += [0] * len(given) + numpy.diff(_bytes_before(text)[ends]).tolist()
        words += [0] * len(given) + numpy.diff(numpy.searchsorted(_word_ends(lines, protocol.line), ends, "right")).tolist()
    if len(ids) < len(starts) + 1:
        raise InputError("the corpus has fewer than two tokens; nothing can be predicted")
    return Tokens(torch.tensor(ids), torch.tensor(sizes), torch.tensor(words), tuple(starts), restart)


def _bytes_before(text: str) -> numpy.ndarray:
    """How many UTF-8 bytes stand before each character, and in all."""
    points = numpy.frombuffer(text.encode("utf-32-le"), dtype=numpy.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(numpy.int64)
    return numpy.concatenate([[0], numpy.cumsum(sizes)])


def _word_ends(lines, template: str) -> list[int]:
    """Where in the text each word ends; what follows a line's words, its end, counts as a word, as in the Penn Treebank."""
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
    """A tokenizers.Tokenizer, which tells the span of each token."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    from transformers import AutoTokenizer

    tokenizer = getattr(AutoTokenizer.from_pretrained(folder, local_files_only=True), "backend_tokenizer", None)
    if tokenizer is None:
        raise InputError(f"{folder} has no tokenizer.json and none can be made from its files; save one with "
                         "AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    return tokenizer


def _beginning(folder: Path, tokenizer) -> int | None:
    """Id of the beginning-of-text token that tokenizer_config.json names, if it names one."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    token = read_json(path).get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return None if token is None else tokenizer.token_to_id(token)


def _adds_beginning(tokenizer, start: int | None) -> bool:
    """Whether the tokenizer puts the beginning-of-text token before a text by itself, as Llama's does and GPT-2's does not."""
    return start is not None and tokenizer.encode("a").ids[:1] == [start]
