"""Trains a causal language model on a small corpus for many epochs: AdamW, warm-up, a cosine schedule, a moving average.

A model can learn a small corpus by heart, so dropout and the number of epochs matter most. After every epoch the moving average
of the weights is scored on a validation text; the best epoch's average is kept.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from quant.files import atomic_file, write_json
from quant.outside import read_json
from quant.progress import duration
from quant.text.corpus import as_text


@dataclass(frozen=True)
class Schedule:
    """epochs: passes over the text; batch_size: windows per step; peak_rate: AdamW's learning rate after `warmup` steps; decay:
    its weight decay; average: decay per step of the moving average of the weights; patience: tolerated epochs in a row without a
    better validation."""

    epochs: int
    batch_size: int = 16
    peak_rate: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.1
    average: float = 0.998
    patience: int = 3

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak rate at a step: linear warm-up, then a half cosine down to a fiftieth."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, steps - self.warmup)))

    def steps_per_epoch(self, stream: torch.Tensor, context: int) -> int:
        """Full batches of the stream's windows, wherever the first window begins."""
        return len(windows_of(stream, context, context - 1)) // self.batch_size


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[Sequence[str]], line: str) -> torch.Tensor:
    """Tokenize texts (lists of lines) into one stream, int64 [n], with the beginning-of-text token before each."""
    ids: list[int] = []
    for lines in texts:
        ids += [tokenizer.bos_token_id, *tokenizer.encode(as_text(lines, line), add_special_tokens=False)]
    return torch.tensor(ids)


def windows_of(stream: torch.Tensor, context: int, offset: int = 0) -> torch.Tensor:
    """Cut a stream into windows [n, context + 1]; neighbours share a token, so all tokens but the first are predicted once."""
    count = (len(stream) - 1 - offset) // context
    return stream[offset : offset + count * context + 1].unfold(0, context + 1, context)


def cross_entropy(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the tokens of windows [n, context + 1], in nats."""
    return torch.nn.functional.cross_entropy(logits_of(model, batch), batch[:, 1:].flatten())


def logits_of(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Logits of the tokens of windows [n, context + 1] but the first, float32 [n * context, vocabulary]."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1], use_cache=False).logits
    return logits.float().flatten(0, 1)


Loss = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]  # of a model on windows [n, context + 1], in nats per token


@torch.no_grad()
def mean_loss(model: PreTrainedModel, windows: torch.Tensor, loss: Loss = cross_entropy) -> float:
    """Mean loss over windows [n, context + 1], in nats per token."""
    model.eval()
    total = sum(loss(model, batch).item() * len(batch) for batch in windows.split(16))
    return total / len(windows)


class Training:
    """Training of one model. An interrupted run resumes from its state in `folder`, at the start of the epoch it was in.

    All randomness comes from the seed and the number of the epoch, so a resumed run gives the result of an uninterrupted one.
    loss: what is trained for, and what chooses the best epoch.
    """

    def __init__(self, model: PreTrainedModel, schedule: Schedule, folder: Path, seed: int = 0,
                 tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
                 loss: Loss = cross_entropy):
        self.model, self.schedule, self.folder, self.seed, self.tell = model, schedule, folder, seed, tell
        self.loss = loss
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=schedule.peak_rate, betas=(0.9, 0.98),
        )  # fmt: skip
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.epoch, self.best, self.best_epoch = 0, math.inf, 0

    def run(self, stream: torch.Tensor, validation: torch.Tensor, context: int) -> None:
        """Train on a stream of tokens; the model then has the weights of the best epoch."""
        self._resume()
        steps_per_epoch = self.schedule.steps_per_epoch(stream, context)
        steps, start, first = steps_per_epoch * self.schedule.epochs, time.monotonic(), self.epoch * steps_per_epoch
        while self.epoch < self.schedule.epochs and self.epoch - self.best_epoch <= self.schedule.patience:
            torch.manual_seed(self.seed + 1000 * (self.epoch + 1))
            windows = windows_of(stream, context, int(torch.randint(context, ())))
            order = torch.randperm(len(windows))[: steps_per_epoch * self.schedule.batch_size]
            for i, batch in enumerate(windows[order].split(self.schedule.batch_size)):
                step = self.epoch * steps_per_epoch + i
                loss = self._step(batch, step, steps)
                if step % 25 == 0:
                    left = (time.monotonic() - start) / (step - first + 1) * (steps - step - 1)
                    self.tell(f"step {step} of {steps}  loss {loss:.4f}  {duration(left)} left")
            self.epoch += 1
            self._validate(validation)
            self._save()
        self._load(self.folder / "best.safetensors")

    def _step(self, batch: torch.Tensor, step: int, steps: int) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.peak_rate * self.schedule.rate(step, steps)
        loss = self.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        share = min(self.schedule.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, 1 - share)
        return loss.item()

    def _validate(self, validation: torch.Tensor) -> None:
        trained = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._put(self.average)
        loss = mean_loss(self.model, validation, self.loss)
        self._put(trained)
        if loss < self.best:
            self.best, self.best_epoch = loss, self.epoch
            with atomic_file(self.folder / "best.safetensors") as path:
                save_file(self.average, path)
        self.tell(f"epoch {self.epoch}: validation {loss:.4f} nats a token; best {self.best:.4f} at epoch {self.best_epoch}")

    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(weights[name])

    def _load(self, path: Path) -> None:
        self._put(load_file(path))

    def _save(self) -> None:
        names = {id(p): name for name, p in self.model.named_parameters()}
        state = {f"weight.{name}": p.detach() for name, p in self.model.named_parameters()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        for p, values in self.optimizer.state.items():
            state |= {f"optimizer.{key}.{names[id(p)]}": value for key, value in values.items()}
        with atomic_file(self.folder / "state.safetensors") as path:
            save_file({name: value.contiguous() for name, value in state.items()}, path)
        write_json(self.folder / "state.json", {"epoch": self.epoch, "best": self.best, "best_epoch": self.best_epoch})

    def _resume(self) -> None:
        if not (self.folder / "state.json").is_file():
            return
        about, state = read_json(self.folder / "state.json"), load_file(self.folder / "state.safetensors")
        self.epoch, self.best, self.best_epoch = about["epoch"], about["best"], about["best_epoch"]
        self._put({name: state[f"weight.{name}"] for name, _ in self.model.named_parameters()})
        self.average = {name: state[f"average.{name}"] for name in self.average}
        for name, p in self.model.named_parameters():
            self.optimizer.state[p] = {key: state[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.tell(f"resumes after epoch {self.epoch}")

