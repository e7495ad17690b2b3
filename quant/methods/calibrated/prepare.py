"""What calibrated variants share: the windows of the calibration text, the moments of the vocabulary, and what each part of the
model costs at each width."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quant.calibration.outside import is_of_vocabulary, rows_in_classes
from quant.calibration.plan import CalibrationPlan
from quant.calibration.probe import PartCost, as_table, from_table, part_costs
from quant.calibration.skeleton import Skeleton
from quant.calibration.vocabulary import VocabularyMoments, vocabulary_moments
from quant.calibration.windows import choose_windows
from quant.errors import InputError
from quant.files import atomic_file, atomic_folder, write_json, write_manifest
from quant.methods import Preparation
from quant.model.architectures import architecture_of
from quant.model.checkpoint import Checkpoint
from quant.model.config import read_config
from quant.model.inventory import Inventory
from quant.model.recipe import Recipe
from quant.model.selection import Selected, select, with_classes
from quant.outside import read_json
from quant.quality.protocol import ScoringProtocol
from quant.tensor.scheme import Scheme
from quant.text.load import load_corpus
from quant.text.read import training_corpus
from quant.text.source import TextSource

WINDOWS, VOCABULARY, ABOUT = "windows.safetensors", "vocabulary.safetensors", "about.json"


def prepare(given: Preparation, out: Path) -> None:
    """Write what the rows want to the folder `out`, but windows of a text that may not be shared to the private folder."""
    plan, protocol = CalibrationPlan.from_dict(given.calibration), ScoringProtocol.from_dict(given.evaluate)
    evaluated = load_corpus(given.evaluated, given.private)
    text = training_corpus(TextSource.from_dict(given.data), plan.text)
    checkpoint = Checkpoint(given.base)
    tokens = choose_windows(text, evaluated, plan, given.base, context_of(checkpoint.config), protocol.line, protocol.unk)
    print(f"calibration text {text.source}, {text.split}: {tokens.shape[0]} windows of {tokens.shape[1]} tokens", flush=True)
    with atomic_folder(out) as folder:
        digest = sha256(tokens.numpy().tobytes()).hexdigest()
        path = given.private / f"{digest}.safetensors" if text.private else folder / WINDOWS
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            save_file({"tokens": tokens.to(torch.int32)}, partial)
        about = {"source": text.source, "split": text.split, "license": text.license, "windows": tokens.shape[0],
                 "length": tokens.shape[1], "seed": plan.seed, "sha256": digest, "private": str(path) if text.private else None}
        write_json(folder / ABOUT, about)
        _prepare_costs(checkpoint, given.wants, tokens, plan.seed, folder)
        write_manifest(folder, {"method": "calibrated", "text": text.source})


def _prepare_costs(checkpoint: Checkpoint, wants: Sequence[Mapping], tokens: torch.Tensor, seed: int, folder: Path) -> None:
    inventory = checkpoint.inventory
    chosen = {key_of(want): (want, chosen_weights(inventory, want)) for want in wants}
    moments = None
    if any(is_of_vocabulary(selected.weight, inventory) for _, weights in chosen.values() for selected in weights):
        moments = _moments(checkpoint.folder, tokens, seed)
        save_file({name: value.contiguous() for name, value in vars(moments).items()}, folder / VOCABULARY)
    skeleton = None
    for key, (want, weights) in chosen.items():
        if want["candidates"]:
            skeleton = skeleton or Skeleton(checkpoint)
            candidates = [Scheme.from_dict(values) for values in want["candidates"]]
            divided = in_classes(weights, inventory, moments, want["classes"])
            write_json(folder / f"costs-{key}.json", as_table(part_costs(skeleton, divided, candidates, moments, tokens)))


def _moments(base: Path, tokens: torch.Tensor, seed: int) -> VocabularyMoments:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                                                 trust_remote_code=False,
                                                 attn_implementation=architecture_of(read_config(base)).attention)
    return vocabulary_moments(model.eval().requires_grad_(False), tokens, seed)


def chosen_weights(inventory: Inventory, want: Mapping) -> list[Selected]:
    """The weights that a row quantizes. Their scheme is a placeholder: the first candidate."""
    scheme = Scheme.from_dict(want["candidates"][0]) if want["candidates"] else Scheme()
    blocks = None if want["blocks"] is None else tuple(want["blocks"])
    recipe = Recipe(scheme, tuple(want["include"]), tuple(want["exclude"]), blocks)
    return [selected for selected in select(inventory, recipe) if selected.is_quantized]


def in_classes(weights: list[Selected], inventory: Inventory, moments: VocabularyMoments | None, count: int) -> list[Selected]:
    """The weights, with the rows of the embedding and the head in classes of importance. Raises InputError without moments."""
    needed = [selected.weight.module for selected in weights if is_of_vocabulary(selected.weight, inventory)]
    if count > 1 and needed and moments is None:
        raise InputError(f"the rows of {needed[0]} are divided by importance, which is not yet measured; run dvc repro prepare")
    return [
        selected if count == 1 or not is_of_vocabulary(selected.weight, inventory) else with_classes(
            selected, rows_in_classes(moments.of(selected.weight)[1], count), [selected.parts[0].scheme] * count)
        for selected in weights
    ]


def context_of(config: Mapping) -> int:
    """The longest input of a model in tokens."""
    return config.get("max_position_embeddings") or config.get("n_positions") or 2**20


def key_of(want: Mapping) -> str:
    """A short name for what a row wants."""
    return sha256(json.dumps(want, sort_keys=True).encode()).hexdigest()[:12]


def read_windows(prepared: Path) -> torch.Tensor:
    """The windows to calibrate on, int64 [windows, length]. Raises InputError if those of a private text are missing."""
    about = read_json(prepared / ABOUT)
    path = Path(about["private"]) if about["private"] else prepared / WINDOWS
    if not path.is_file():
        raise InputError(f"the windows of the calibration text {about['source']}, which may not be shared, are missing; run dvc "
                         "repro -f prepare to make them again")
    return load_file(path)["tokens"].long()


def read_moments(prepared: Path) -> VocabularyMoments | None:
    """The moments of the vocabulary; None where no row needs them."""
    path = prepared / VOCABULARY
    return VocabularyMoments(**load_file(path)) if path.is_file() else None


def read_costs(prepared: Path, want: Mapping) -> dict[str, PartCost]:
    """What each part costs at each of a row's candidates."""
    path = prepared / f"costs-{key_of(want)}.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: it holds what each part of the model costs at each width, from which those "
                         "of a budget are chosen; run dvc repro prepare to measure it")
    return from_table(read_json(path))
