"""From lines to tokens to windows in which every token is scored exactly once.

Protocol "joined": the lines as one text, after the beginning-of-text token where the tokenizer has one, cut into
windows of `context` tokens that advance by `stride`; a token is scored in the first window that reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from quant.corpus import Corpus, as_text
from quant.errors import InputError
from quant.files import read_json
from quant.scheme import known_keys

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """name: "joined"; context, stride: tokens; line: the form a line takes in the text, {} its words."""

    name: str = "joined"
    context: int = 256
    stride: int = 256
    line: str = " {} \n"

    def __post_init__(self) -> None:
        if self.name != "joined":
            raise InputError(f"protocol is {self.name!r}; expected joined")
        for key in ("context", "stride"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"evaluate.{key} is {value!r}; expected a number of tokens from 1")
        if self.stride > self.context:
            raise InputError(f"evaluate.stride {self.stride} exceeds evaluate.context {self.context}: tokens would be skipped")
        if not isinstance(self.line, str) or self.line.count("{}") != 1:
            raise InputError(f"evaluate.line is {self.line!r}; expected a text with one {{}} for the line's words")

    @classmethod
    def from_dict(cls, values: dict) -> Protocol:
        return cls(**known_keys(cls, values, "evaluate"))


@dataclass(frozen=True)
class Tokens:
    """ids: int64 [n]; the first `given` of them are only context. bytes, words: of the scored text."""

    ids: torch.Tensor
    given: int
    bytes: int
    words: int

    @property
    def scored(self) -> int:
        return len(self.ids) - self.given

    @property
    def sha256(self) -> str:
        return sha256(self.ids.to(torch.int32).numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Window:
    """inputs [length] predict targets [length]; the last `scored` of the targets count."""

    inputs: torch.Tensor
    targets: torch.Tensor
    scored: int


def tokenize(corpus: Corpus, tokenizer_folder: Path, protocol: Protocol) -> Tokens:
    """The corpus as one list of token ids; special tokens that the text spells out stay plain text."""
    from tokenizers import Tokenizer

    path = Path(tokenizer_folder) / "tokenizer.json"
    text = as_text(corpus.lines, protocol.line)
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = True  # `<unk>` in the text is text, whatever the vocabulary calls it
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        start = _beginning(Path(tokenizer_folder), tokenizer)
    else:
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        ids, start = slow.encode(text, add_special_tokens=False), slow.bos_token_id
    given = [] if start is None else [start]
    if len(given) + len(ids) < 2:
        raise InputError("the corpus has fewer than two tokens; nothing can be predicted")
    return Tokens(torch.tensor(given + ids), max(1, len(given)), len(text.encode()), corpus.words)


def windows(tokens: Tokens, protocol: Protocol, context: int) -> Iterator[Window]:
    """Windows over the tokens; `context` is the most the model takes, and bounds the protocol's."""
    length, stride = min(protocol.context, context), min(protocol.stride, context)
    ids, total = tokens.ids, len(tokens.ids) - 1  # every position but the last predicts its successor
    reached = 0
    for start in range(0, total, stride):
        stop = min(start + length, total)
        yield Window(ids[start:stop], ids[start + 1 : stop + 1], stop - reached)
        reached = stop
        if stop == total:
            return


def _beginning(folder: Path, tokenizer) -> int | None:
    """Id of the beginning-of-text token that tokenizer_config.json names, if it names one."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    token = read_json(path).get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return None if token is None else tokenizer.token_to_id(token)
