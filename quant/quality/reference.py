"""The base's predictions, stored as last hidden states; its head recomputes the logits.

So the base runs once, not again for every variant. A hidden state is much smaller than a row of logits: it has as many numbers
as the model is wide, not as many as the vocabulary has tokens. For a model whose logits are not just a product with its head
(Gemma 2 caps them) no states are stored; the base then runs again for every variant.
"""

from __future__ import annotations

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


class Recorder:
    """Predictions of the running base. Writes its states to `folder` during one pass over the tokens; call `finish` after it."""

    is_thread_safe = False

    def __init__(self, runner: RunnerWithStates, model: Path, tokens: Tokens, protocol: ScoringProtocol, folder: Path):
        self.vocabulary, self.context = runner.vocabulary, runner.context
        self._runner, self._folder, self._head = runner, folder, _head(model).to(runner.device)
        self._about = _about(tokens, protocol, runner.context)
        self._count = len(tokens.ids)
        self._states: numpy.memmap | None = None
        self._is_linear = True

    def rows(self, batch: Batch) -> torch.Tensor:
        logits, states = self._runner.logits_and_states(batch.inputs)
        logits, states = (values[:, -batch.scored :].flatten(0, 1) for values in (logits, states))
        if self._is_linear and self._states is None:
            self._begin(logits, states)
        if self._is_linear:
            for window, rows in zip(batch.windows, states.cpu().split(batch.scored), strict=True):
                self._states[window.scored_tokens] = rows.numpy()
        return logits

    def finish(self) -> None:
        width = None
        if self._is_linear and self._states is not None:
            self._states.flush()
            width = self._states.shape[1]
        write_json(self._folder / ABOUT, {**self._about, "width": width, "vocabulary": self.vocabulary})

    def _begin(self, logits: torch.Tensor, states: torch.Tensor) -> None:
        again = products.linear(states, self._head)
        self._is_linear = again.shape == logits.shape and bool((again - logits).abs().max() <= TOLERANCE * logits.abs().max())
        if self._is_linear:
            shape = (self._count, states.shape[1])
            self._states = numpy.memmap(self._folder / STATES, dtype="<f4", mode="w+", shape=shape)


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
