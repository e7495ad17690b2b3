"""Copies the base model, from a local folder or from the Hub at one commit, into a folder with a manifest of sha256."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from quant.errors import InputError
from quant.files import atomic_folder, write_json, write_manifest
from quant.hub.download import announce, fetch
from quant.hub.license import License
from quant.hub.repository import Snapshot, is_commit, resolve
from quant.hub.source import ModelSource
from quant.model.architectures import architecture_of
from quant.model.checkpoint import Checkpoint
from quant.model.config import check_places, check_tokenizer, read_config, without_code
from quant.model.folder import (
    INDEX,
    LARGEST_COMPANION,
    TOKENIZERS,
    companions,
    copy_companions,
    is_companion,
    require_tokenizer,
    shard_names,
    weight_files,
    weight_paths,
)
from quant.outside import shown
from quant.progress import size

CARD = "README.md"


def obstacle(model: ModelSource) -> str | None:
    """Why a model can't be fetched, as far as resolving it on the Hub shows; None if it can."""
    try:
        if not model.is_local:
            resolve(model.source, model.revision)
    except InputError as error:
        return str(error)
    return None


def fetch_model(model: ModelSource, out: Path, section: str = "model") -> None:
    """Copy the config, tokenizer and safetensors of a model, checked, into the folder `out`, and print a summary.

    section: of params.yaml that names the model, for messages. Raises InputError for a model that the pipeline can't quantize;
    `out` appears whole or not at all.
    """
    if model.is_local:
        if model.revision is not None:
            raise InputError(f"{section}.revision is {model.revision!r}, but {model.source} is a folder; set it to null")
        _copy(Path(model.source), out, model.source, None)
        return
    snapshot = resolve(model.source, model.revision)
    if not is_commit(model.revision):
        print(f"{model.source}: {model.revision or 'main'} is commit {snapshot.commit}; to get the same model every time, pin "
              f"it: -S {section}.revision={snapshot.commit}, or in params.yaml", flush=True)
    names = needed_files(snapshot)
    folder = fetch(snapshot, ["config.json"])["config.json"].parent
    require_usable(read_config(folder), model.source)  # before the weights are downloaded
    announce(snapshot, names, copy_to=out)
    fetch(snapshot, names)
    _copy(folder, out, model.source, snapshot.commit)


def require_usable(config: Mapping, name: str) -> None:
    """Raise InputError unless a model of this config can be quantized: a known architecture, and not quantized already."""
    architecture_of(config)
    done = config.get("quantization_config")
    if done is not None:
        method = shown(done.get("quant_method", "by a method it doesn't name") if isinstance(done, Mapping) else done)
        raise InputError(f"{name} is quantized already ({method}); give the unquantized model, which its card names")


def needed_files(snapshot: Snapshot) -> list[str]:
    """The files that the pipeline uses, small ones first: config, tokenizer, card, safetensors; never pickle or code.

    A repository may hold the same weights several times; the safetensors are those that its index names, or model.safetensors.
    """
    held = snapshot.files
    if "config.json" not in held:
        raise InputError(f"{snapshot.repo}{_as_cached(snapshot)} has no config.json; expected a model in the format of "
                         f"transformers. It holds {', '.join(sorted(held)[:6]) or 'nothing'}")
    companions = [name for name in sorted(held) if "/" not in name and is_companion(name)]
    if not any(name in companions for name in TOKENIZERS):
        raise InputError(f"{snapshot.repo}{_as_cached(snapshot)} has no tokenizer; expected {' or '.join(TOKENIZERS)}")
    return ["config.json", *companions, *([CARD] if CARD in held else []), *([INDEX] if INDEX in held else []),
            *weight_files_of(snapshot)]


def weight_files_of(snapshot: Snapshot) -> list[str]:
    """The safetensors files of a repository: those its index names, or model.safetensors."""
    shards = shard_names(fetch(snapshot, [INDEX])[INDEX]) if INDEX in snapshot.files else None
    return weight_files(snapshot.files, shards, f"{snapshot.repo}{_as_cached(snapshot)}")


def _as_cached(snapshot: Snapshot) -> str:
    return " (as cached; the Hub is out of reach)" if snapshot.cached else ""


def _copy(source: Path, out: Path, name: str, commit: str | None) -> None:
    with_index = [INDEX] if (source / INDEX).exists() else []
    check_places(source, [file for file in ("config.json", CARD) if os.path.lexists(source / file)] + with_index)
    check_places(source, companions(source), LARGEST_COMPANION)
    check_places(source, [path.name for path in weight_paths(source)])
    checkpoint = Checkpoint(source)
    require_usable(checkpoint.config, name)
    require_tokenizer(source)
    check_tokenizer(source)
    license, shards = License.from_card(source / CARD), weight_paths(source)
    architecture, dtype = checkpoint.config["model_type"], checkpoint.inventory.dtype
    with atomic_folder(out) as folder:
        for path in [source / "config.json", *(source / index for index in with_index), *shards]:
            shutil.copyfile(path, folder / path.name)
        kept = without_code(checkpoint.config)
        if kept != checkpoint.config:
            write_json(folder / "config.json", kept)
        copy_companions(source, folder)
        write_manifest(folder, {"source": name, "revision": commit, "dtype": dtype, "architecture": architecture,
                                "license": license.to_dict()})
    print(f"model {name}{f' at {commit}' if commit else ''}: {architecture}, stored as {dtype}, "
          f"{size(sum(path.stat().st_size for path in shards))} of weights, licence {license.label}", flush=True)
