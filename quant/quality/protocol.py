"""Scoring protocols: how a text becomes windows in which every token is scored at most once.

joined/1     The lines as one text, after the beginning-of-text token where the tokenizer has one, in windows of `context`
             tokens that advance by `stride`; a token is scored in the first window that reaches it. Every token is scored.
sentence/1   Each line alone after the beginning-of-text token; every token of it is scored. A line longer than the context
             is continued in windows that advance by `stride`.
llama.cpp/1  As in llama-perplexity: the text in chunks of `context` tokens without overlap; the second half of each chunk
             is scored. Where the tokenizer adds a beginning-of-text token by itself, that token replaces the first of each
             chunk. An incomplete chunk at the end is dropped.

A change that affects a protocol's numbers requires a new version of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.config import is_whole, known_keys
from quant.errors import InputError

PROTOCOLS = ("joined/1", "sentence/1", "llama.cpp/1")
UNK_MODES = ("text", "token")


@dataclass(frozen=True)
class ScoringProtocol:
    """The section `evaluate` of params.yaml.

    protocol: one of PROTOCOLS. context, stride: in tokens. line: template of a line, {} for its words. unk: "text" encodes
    `<unk>` in the text as its letters, "token" lets the tokenizer turn it into its special token.
    """

    protocol: str = "joined/1"
    context: int = 256
    stride: int = 256
    line: str = " {} \n"
    unk: str = "text"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(f"evaluate.protocol is {self.protocol!r}; expected {', '.join(PROTOCOLS)}")
        if self.unk not in UNK_MODES:
            raise InputError(f"evaluate.unk is {self.unk!r}; expected {' or '.join(UNK_MODES)}")
        for key in ("context", "stride"):
            value = getattr(self, key)
            if not is_whole(value):
                raise InputError(f"evaluate.{key} is {value!r}; expected a number of tokens from 1")
        if self.name == "llama.cpp" and self.context < 4:
            raise InputError(f"evaluate.context is {self.context}; {self.protocol} takes chunks of at least 4 tokens")
        if self.stride > self.context:
            raise InputError(f"evaluate.stride {self.stride} exceeds evaluate.context {self.context}: tokens would be skipped")
        if not isinstance(self.line, str) or self.line.count("{}") != 1:
            raise InputError(f"evaluate.line is {self.line!r}; expected a text with one {{}} for the line's words")

    @classmethod
    def from_dict(cls, values: dict) -> ScoringProtocol:
        return cls(**known_keys(cls, values, "evaluate"))

    @property
    def name(self) -> str:
        return self.protocol.partition("/")[0]

    @property
    def version(self) -> int:
        return int(self.protocol.partition("/")[2])

    def describe(self, context: int) -> dict:
        """The protocol as part of a result, for JSON. context: the model's limit in tokens, which caps the protocol's."""
        return {
            "name": self.name,
            "version": self.version,
            "context": min(self.context, context),
            "stride": None if self.name == "llama.cpp" else min(self.stride, context),
            "line": self.line,
            "join": None if self.name == "sentence" else "",
            "unk": self.unk,
        }
