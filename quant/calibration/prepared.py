"""The windows of the calibration text as the stage `prepare` keeps them: written once, read by every variant that calibrates."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quant.calibration.plan import CalibrationPlan
from quant.calibration.windows import choose_windows
from quant.errors import InputError
from quant.files import atomic_file, read_json, write_json
from quant.model.checkpoint import Checkpoint
from quant.quality.protocol import ScoringProtocol
from quant.text.load import load_corpus
from quant.text.read import training_corpus
from quant.text.source import TextSource

WINDOWS, ABOUT = "windows.safetensors", "about.json"


def write_windows(folder: Path, base: Path, evaluated: Path, private: Path, calibration: Mapping, data: Mapping,
                  evaluate: Mapping) -> tuple[torch.Tensor, str]:
    """Choose the windows and write them to `folder`, but those of a text that may not be shared to the folder `private`; returns
    them, int64 [windows, length], and the name of the text. evaluated: folder of the text that is measured. calibration, data,
    evaluate: sections of params.yaml."""
    plan, protocol = CalibrationPlan.from_dict(calibration), ScoringProtocol.from_dict(evaluate)
    text = training_corpus(TextSource.from_dict(data), plan.text)
    context = context_of(Checkpoint(base).config)
    tokens = choose_windows(text, load_corpus(evaluated, private), plan, base, context, protocol.line, protocol.unk)
    print(f"calibration text {text.source}, {text.split}: {tokens.shape[0]} windows of {tokens.shape[1]} tokens", flush=True)
    digest = sha256(tokens.numpy().tobytes()).hexdigest()
    path = private / f"{digest}.safetensors" if text.private else folder / WINDOWS
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        save_file({"tokens": tokens.to(torch.int32)}, partial)
    about = {"source": text.source, "split": text.split, "license": text.license, "windows": tokens.shape[0],
             "length": tokens.shape[1], "seed": plan.seed, "sha256": digest, "private": str(path) if text.private else None}
    write_json(folder / ABOUT, about)
    return tokens, text.source


def read_windows(prepared: Path) -> torch.Tensor:
    """The windows to calibrate on, int64 [windows, length]. Raises InputError if those of a private text are missing."""
    about = read_json(prepared / ABOUT)
    path = Path(about["private"]) if about["private"] else prepared / WINDOWS
    if not path.is_file():
        raise InputError(f"the windows of the calibration text {about['source']}, which may not be shared, are missing; run dvc "
                         "repro -f prepare to make them again")
    return load_file(path)["tokens"].long()


def described(prepared: Path) -> dict:
    """The calibration text as a variant's manifest names it."""
    return {key: value for key, value in read_json(prepared / ABOUT).items() if key in ("source", "split", "windows", "length")}


def context_of(config: Mapping) -> int:
    """The longest input of a model in tokens."""
    return config.get("max_position_embeddings") or config.get("n_positions") or 2**20
