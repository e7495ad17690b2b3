"""What the base predicted, kept small: its last hidden states, from which its head makes the logits again.

The base then runs once, and not again beside every variant: of a pass over a model only the last product is left. A
state is as long as the model is wide, a row of logits as long as its vocabulary, many times that; logits are not kept.
A model that does more to its logits than multiply with the head (Gemma 2 caps them) leaves no states, and runs again.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import torch

from quant.errors import InputError
from quant.files import read_json, write_json
from quant.model.checkpoint import Checkpoint
from quant.quality.protocol import ScoringProtocol
from quant.quality.score import Batch
from quant.quality.windows import Tokens
from quant.runners import RunnerWithStates

ABOUT, STATES = "about.json", "states.f32"
TOLERANCE = 1e-3  # of the logits; float32 products in another order differ by about 1e-5


class Recorder:
    """The base's predictions while it runs; leaves its states in `folder`, after one pass over the tokens."""

    def __init__(self, runner: RunnerWithStates, model: Path, tokens: Tokens, protocol: ScoringProtocol, folder: Path):
        self.vocabulary, self.context = runner.vocabulary, runner.context
        self._runner, self._folder, self._head = runner, folder, _head(model).to(runner.device)
        self._about = _about(tokens, protocol, runner.context)
        self._count = len(tokens.ids)
        self._states: numpy.memmap | None = None
        self._works = True

    def rows(self, batch: Batch) -> torch.Tensor:
        logits, states = self._runner.logits_and_states(batch.inputs)
        logits, states = (values[:, -batch.scored :].flatten(0, 1) for values in (logits, states))
        if self._works and self._states is None:
            self._begin(logits, states)
        if self._works:
            for window, rows in zip(batch.windows, states.cpu().split(batch.scored), strict=True):
                self._states[window.scored_tokens] = rows.numpy()
        return logits

    def finish(self) -> None:
        width = None
        if self._works and self._states is not None:
            self._states.flush()
            width = self._states.shape[1]
        write_json(self._folder / ABOUT, {**self._about, "width": width, "vocabulary": self.vocabulary})

    def _begin(self, logits: torch.Tensor, states: torch.Tensor) -> None:
        again = torch.nn.functional.linear(states, self._head)
        self._works = again.shape == logits.shape and bool((again - logits).abs().max() <= TOLERANCE * logits.abs().max())
        if self._works:
            shape = (self._count, states.shape[1])
            self._states = numpy.memmap(self._folder / STATES, dtype="<f4", mode="w+", shape=shape)


class Reference:
    """The base's predictions, from the states that a Recorder left."""

    def __init__(self, folder: Path, model: Path, tokens: Tokens, protocol: ScoringProtocol, device: str = "cpu"):
        about = read_json(folder / ABOUT)
        self.vocabulary, self.context = about["vocabulary"], about["model_context"]
        if {key: about[key] for key in about if key not in ("width", "vocabulary")} != _about(tokens, protocol, self.context):
            raise InputError(f"{folder} holds what base predicted of another text or by another protocol; run dvc repro to "
                             "make it again")
        self._states = numpy.memmap(folder / STATES, dtype="<f4", mode="r", shape=(len(tokens.ids), about["width"]))
        self._head = _head(model).to(device)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the base could leave states. Raises InputError where it has not run."""
        if not (folder / ABOUT).is_file():
            raise InputError(f"{folder} does not exist; evaluate base first, or run dvc repro, which does")
        return read_json(folder / ABOUT)["width"] is not None

    def rows(self, batch: Batch) -> torch.Tensor:
        states = numpy.concatenate([self._states[window.scored_tokens] for window in batch.windows])
        return torch.nn.functional.linear(torch.from_numpy(states).to(self._head.device), self._head)


def _about(tokens: Tokens, protocol: ScoringProtocol, context: int) -> dict:
    return {"token_ids_sha256": tokens.sha256, "model_context": context, "protocol": protocol.describe(context)}


def _head(model: Path) -> torch.Tensor:
    """The head's weight, float32 [vocabulary, width]; the embedding's where they are tied."""
    checkpoint = Checkpoint(model)
    return checkpoint.read(checkpoint.inventory.head.tensor).float()
