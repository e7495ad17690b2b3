"""The files of a model's folder or repository: the weights, and the companions (tokenizer, chat template)."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from quant.errors import InputError
from quant.outside import MIB, file_within, read_json, shown

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
COMPANIONS = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
              "generation_config.json", "chat_template*", "spiece.model")
COMPANION_KINDS = (".json", ".txt", ".model", ".jinja")  # never code, never pickle
LARGEST_COMPANION = 128 * MIB  # Gemma's tokenizer has 34 MB


def is_companion(name: str) -> bool:
    """Whether a file is copied along with the weights and the config: a tokenizer's or a chat template's."""
    return name.endswith(COMPANION_KINDS) and any(fnmatchcase(name, pattern) for pattern in COMPANIONS)


def copy_companions(source: Path, out: Path) -> None:
    """Copy the companions of a model's folder into `out`. Raises InputError for one that is no plain file of the folder, or is
    too large."""
    for name in companions(source):
        shutil.copyfile(file_within(Path(source) / name, source, LARGEST_COMPANION), out / name)


def companions(folder: Path) -> list[str]:
    """The names of a folder's companions."""
    return sorted(path.name for path in Path(folder).iterdir() if is_companion(path.name))


def require_tokenizer(folder: Path) -> None:
    """Raise InputError for a folder without a tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"{folder} has no tokenizer; expected {' or '.join(TOKENIZERS)} beside the weights")


def weight_paths(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, or model.safetensors."""
    folder = Path(folder)
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    shards = shard_names(folder / INDEX) if INDEX in held else None
    return [folder / name for name in weight_files(held, shards, str(folder))]


def weight_files(held: Collection[str], shards: list[str] | None, where: str) -> list[str]:
    """The names of the weight files among the files `held`. shards: those that the index names; None without an index.

    Raises InputError, which names the place `where`, if one is missing or if there are only pickles.
    """
    if shards is not None:
        missing = [name for name in shards if name not in held]
        if missing:
            raise InputError(f"{where} lacks {', '.join(missing)}, which its index names; fetch the model again")
        return shards
    if SINGLE in held:
        return [SINGLE]
    pickles = sorted(name for name in held if any(fnmatchcase(name, pattern) for pattern in PICKLES))
    if pickles:
        raise InputError(f"{where} has pickle weights only ({pickles[0]}), which can run code when opened; use a revision or "
                         "copy of the model with safetensors (the Hub often has one as a pull request: "
                         "model.revision=refs/pr/1), or convert them if you trust them")
    raise InputError(f"{where} has no {SINGLE}; expected weights in safetensors")


def shard_names(index: Path) -> list[str]:
    """The weight files that an index names. Raises InputError unless each is a safetensors file in the index's folder."""
    values = read_json(index)
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} is not an index of weights: weight_map is {shown(places)}; fetch the model again")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors") or "\0" in name:
            raise InputError(f"{index} names {shown(name)}; expected safetensors files in its own folder; refused")
    return sorted(set(places.values()))
