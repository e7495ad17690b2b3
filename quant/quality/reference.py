"""The base's predictions, stored as last hidden states; its head recomputes the logits.

So the base runs once, not again for every variant. A hidden state is much smaller than a row of logits: it has as many numbers
as the model is wide, not as many as the vocabulary has tokens. For a model whose logits are not just a product with its head
(Gemma 2 caps them) no states are stored; the base then runs again for every variant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from quant.errors import InputError
from quant.files import write_json
from quant.model.checkpoint import Checkpoint
from quant.outside import read_json
from quant.quality.protocol import ScoringProtocol
from quant.quality.score import Batch
from quant.quality.windows import Tokens
from quant.runners import RunnerWithStates
from quant.tensor import products

ABOUT, STATES = "about.json", "states.f32"
TOLERANCE = 1e-3  # relative to the largest logit; float32 sums in another order differ by about 1e-5
COPIED = 4096  # states that are copied together


@dataclass(frozen=True)
class Recorded:
    """What a Recorder wrote. about: what ABOUT holds; its `width` is None where logits are not a product with the head, or where
    there was no batch. states: name of the file of hidden states, float32 [tokens, width], zero where no token is scored, or
    None."""

    about: dict
    states: str | None


class Recorder:
    """Predictions of the running base. Writes its states to `folder` during one pass over part i of n of the tokens, as (i, n);
    call `finish` after it, and then `join_recorded` with the parts. The first batch is recorded before others begin."""

    def __init__(self, runner: RunnerWithStates, model: Path, tokens: Tokens, protocol: ScoringProtocol, folder: Path,
                 part: tuple[int, int] = (0, 1)):
        self.vocabulary, self.context, self.is_thread_safe = runner.vocabulary, runner.context, runner.is_thread_safe
        self._runner, self._head = runner, _head(model).to(runner.device)
        self._about = _about(tokens, protocol, runner.context) | {"width": None, "vocabulary": self.vocabulary}
        self._count, self._is_all = len(tokens.ids), part[1] == 1
        # A part has a file of its own, under a name of its own: another attempt at it may be alive
        self._path = folder / (STATES if self._is_all else f".{part[0]}.{os.urandom(4).hex()}.partial")
        self._states: numpy.memmap | None = None
        self._has_begun = False

    def rows(self, batch: Batch) -> torch.Tensor:
        logits, states = self._runner.logits_and_states(batch.inputs)
        logits, states = (values[:, -batch.scored :].flatten(0, 1) for values in (logits, states))
        if not self._has_begun:
            self._begin(logits, states)
        if self._states is not None:
            for window, rows in zip(batch.windows, states.cpu().split(batch.scored), strict=True):
                self._states[window.scored_tokens] = rows.numpy()
        return logits

    def finish(self) -> Recorded:
        if self._states is not None:
            self._states.flush()
        return Recorded(self._about, None if self._states is None else self._path.name)

    def _begin(self, logits: torch.Tensor, states: torch.Tensor) -> None:
        self._has_begun, width = True, states.shape[1]
        again = products.linear(states, self._head)
        if again.shape == logits.shape and bool((again - logits).abs().max() <= TOLERANCE * logits.abs().max()):
            self._about["width"] = width
        if self._about["width"] or not self._is_all:  # the part with the first batch decides, as one pass does
            self._states = numpy.memmap(self._path, dtype="<f4", mode="w+", shape=(self._count, width))


def join_recorded(folder: Path, parts: list[tuple[torch.Tensor, Recorded]]) -> None:
    """Write ABOUT, and the states of parts as one file, with the bytes of one pass. parts: the numbers of a part's scored tokens
    in the text, int64 [n], and what was recorded of it; in the order of the parts."""
    about = next((recorded.about for places, recorded in parts if len(places)), parts[0][1].about)
    if about["width"] and len(parts) > 1:
        written = [(places, folder / recorded.states) for places, recorded in parts if recorded.states]
        shape = written[0][1].stat().st_size // 4 // about["width"], about["width"]
        whole = numpy.memmap(folder / STATES, dtype="<f4", mode="w+", shape=shape)
        for places, path in written:
            states = numpy.memmap(path, dtype="<f4", mode="r", shape=shape)
            for some in places.split(COPIED):
                whole[some.numpy()] = states[some.numpy()]
        whole.flush()
    for left in folder.glob(".*.partial"):  # the files of parts, and of attempts that died
        left.unlink()
    write_json(folder / ABOUT, about)


class Reference:
    """Predictions of the base, from the states that a Recorder wrote.

    Raises InputError for states of another text, protocol or context.
    """

    is_thread_safe = True

    def __init__(self, folder: Path, model: Path, tokens: Tokens, protocol: ScoringProtocol, device: str = "cpu"):
        about = read_json(folder / ABOUT)
        self.vocabulary, self.context = about["vocabulary"], about["model_context"]
        if {key: about[key] for key in about if key not in ("width", "vocabulary")} != _about(tokens, protocol, self.context):
            raise InputError(f"{folder} holds the base's predictions for another text or protocol; make it again with "
                             "dvc repro")
        self._states = numpy.memmap(folder / STATES, dtype="<f4", mode="r", shape=(len(tokens.ids), about["width"]))
        self._head = _head(model).to(device)

    @staticmethod
    def exists_in(folder: Path) -> bool:
        """Whether the folder holds states. Raises InputError where the base has not been evaluated."""
        if not (folder / ABOUT).is_file():
            raise InputError(f"{folder} does not exist; evaluate the base first, or run dvc repro")
        return read_json(folder / ABOUT)["width"] is not None

    def rows(self, batch: Batch) -> torch.Tensor:
        states = numpy.concatenate([self._states[window.scored_tokens] for window in batch.windows])
        return products.linear(torch.from_numpy(states).to(self._head.device), self._head)


def _about(tokens: Tokens, protocol: ScoringProtocol, context: int) -> dict:
    return {"token_ids_sha256": tokens.sha256, "model_context": context, "protocol": protocol.describe(context)}


def _head(model: Path) -> torch.Tensor:
    """Weight of the head, float32 [vocabulary, width]; the embedding's where they are tied."""
    checkpoint = Checkpoint(model)
    return checkpoint.read(checkpoint.inventory.head.tensor).float()
