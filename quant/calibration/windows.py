"""Chooses the windows of a calibration text, none of which shares a passage with the text that is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch

from quant.calibration.plan import CalibrationPlan
from quant.errors import InputError
from quant.model.config import translating_tokenizers
from quant.quality.windows import open_tokenizer
from quant.text.corpus import Corpus, as_text

PASSAGE = 32  # tokens: a shorter run that two texts share may be a set phrase
MOST_SHARED = 0.02  # of the windows; more means that the two texts overlap


def choose_windows(calibration: Corpus, evaluated: Corpus, plan: CalibrationPlan, tokenizer_folder: Path, context: int, line: str,
                   unk: str = "text") -> torch.Tensor:
    """The windows to calibrate on, int64 [windows, length], in text order. context: of the model, which caps their length. line,
    unk: as in the scoring protocol.

    Windows that share a passage with the evaluated text are left out. Raises InputError where these are many, or nothing is left.
    """
    tokenizer = open_tokenizer(Path(tokenizer_folder))
    tokenizer.encode_special_tokens = unk == "text"

    def ids_of(corpus: Corpus) -> numpy.ndarray:
        with translating_tokenizers(f"{tokenizer_folder}: its tokenizer can't encode the text"):
            return numpy.array(tokenizer.encode(as_text(corpus.lines, line), add_special_tokens=False).ids, dtype=numpy.int64)

    length = min(plan.length, context)
    ids = ids_of(calibration)
    every = ids[: len(ids) // length * length].reshape(-1, length)
    is_shared = _shares_passage(every, ids_of(evaluated))
    if is_shared.mean() > MOST_SHARED if len(every) else False:
        raise InputError(f"{is_shared.sum()} of {len(every)} windows of the calibration text {calibration.source} share a "
                         f"passage of {min(PASSAGE, length)} tokens with the evaluated text {evaluated.source}: calibrating on "
                         "what is measured would flatter the result; set calibration.text to another text")
    kept = every[~is_shared]
    if not len(kept):
        raise InputError(f"the calibration text {calibration.source} has {len(ids)} tokens, fewer than a window of {length}; set "
                         "calibration.text to a longer text, or make calibration.length smaller")
    count = min(plan.windows, len(kept))
    chosen = numpy.sort(numpy.random.default_rng(plan.seed).choice(len(kept), count, replace=False))
    return torch.from_numpy(kept[chosen])


def _shares_passage(windows: numpy.ndarray, evaluated: numpy.ndarray) -> numpy.ndarray:
    """Whether each window [windows, length] has a run of PASSAGE tokens that the evaluated text has too: bool [windows]."""
    size = min(PASSAGE, windows.shape[1])
    if not len(windows) or len(evaluated) < size:
        return numpy.zeros(len(windows), dtype=bool)
    known = numpy.unique(_hashes(evaluated[None], size))
    return numpy.isin(_hashes(windows, size), known).any(1)


def _hashes(rows: numpy.ndarray, size: int) -> numpy.ndarray:
    """A 64-bit hash of every run of `size` tokens: uint64 [rows, columns - size + 1]."""
    found = numpy.zeros((len(rows), rows.shape[1] - size + 1), dtype=numpy.uint64)
    for start in range(size):
        tokens = rows[:, start : start + found.shape[1]].astype(numpy.uint64)
        found = found * numpy.uint64(0x9E3779B97F4A7C15) + tokens + numpy.uint64(1)
    return found
