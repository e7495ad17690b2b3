"""What methods that look at a calibration text share: its windows, and the moments of the vocabulary, in a folder of files."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quant.calibration.plan import CalibrationPlan
from quant.calibration.skeleton import open_float
from quant.calibration.vocabulary import VocabularyMoments, vocabulary_moments
from quant.calibration.windows import choose_windows
from quant.errors import InputError
from quant.files import atomic_file, write_json
from quant.model.checkpoint import Checkpoint
from quant.outside import read_json
from quant.quality.protocol import ScoringProtocol
from quant.text.load import load_corpus
from quant.text.read import training_corpus
from quant.text.source import TextSource

WINDOWS, VOCABULARY, ABOUT = "windows.safetensors", "vocabulary.safetensors", "about.json"


def write_windows(checkpoint: Checkpoint, evaluated: Path, private: Path, plan: CalibrationPlan, data: Mapping, evaluate: Mapping,
                  folder: Path) -> torch.Tensor:
    """Choose the windows to calibrate on, int64 [windows, length], and write them to `folder`, or those of a text that may not be
    shared to the folder `private`. evaluated: folder of the text that is measured. data, evaluate: sections of params.yaml."""
    protocol = ScoringProtocol.from_dict(evaluate)
    text = training_corpus(TextSource.from_dict(data), plan.text)
    tokens = choose_windows(text, load_corpus(evaluated, private), plan, checkpoint.folder, context_of(checkpoint.config),
                            protocol.line, protocol.unk)
    print(f"calibration text {text.source}, {text.split}: {tokens.shape[0]} windows of {tokens.shape[1]} tokens", flush=True)
    digest = sha256(tokens.numpy().tobytes()).hexdigest()
    path = private / f"{digest}.safetensors" if text.private else folder / WINDOWS
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        save_file({"tokens": tokens.to(torch.int32)}, partial)
    about = {"source": text.source, "split": text.split, "license": text.license, "windows": tokens.shape[0],
             "length": tokens.shape[1], "seed": plan.seed, "sha256": digest, "private": str(path) if text.private else None}
    write_json(folder / ABOUT, about)
    return tokens


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


def read_moments(prepared: Path) -> VocabularyMoments | None:
    """The moments of the vocabulary; None where no row needs them."""
    path = prepared / VOCABULARY
    return VocabularyMoments(**load_file(path)) if path.is_file() else None


def write_moments(base: Path, tokens: torch.Tensor, seed: int, folder: Path) -> VocabularyMoments:
    """Take the moments of the vocabulary of the model in `base` and write them to `folder`."""
    moments = vocabulary_moments(open_float(base), tokens, seed)
    save_file({name: value.contiguous() for name, value in vars(moments).items()}, folder / VOCABULARY)
    return moments


def context_of(config: Mapping) -> int:
    """The longest input of a model in tokens."""
    return config.get("max_position_embeddings") or config.get("n_positions") or 2**20
