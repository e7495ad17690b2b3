"""Models in: a local folder, or a repository of the Hub at one commit, becomes models/base with a manifest of sha256."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from quant.hub import client as hub
from quant.model.architectures import architecture_of
from quant.model.artifact import COMPANION_KINDS, COMPANIONS, copy_companions
from quant.model.checkpoint import Checkpoint, read_config, shard_names, shard_paths
from quant.errors import InputError
from quant.files import whole_folder, write_manifest
from quant.hub.client import RemoteFile, Snapshot
from quant.hub.license import License
from quant.tensor.scheme import known_keys
from quant.progress import size

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CARD = "README.md"


@dataclass(frozen=True)
class ModelSource:
    """source: a folder, or a Hub id (owner/name); revision: its commit, or a branch or tag (None: main)."""

    source: str
    revision: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping) -> ModelSource:
        return cls(**known_keys(cls, dict(values), "model"))

    def __post_init__(self) -> None:
        for key, value in (("source", self.source), ("revision", self.revision)):
            if not isinstance(value, str) and not (key == "revision" and value is None):
                raise InputError(f"model.{key} is {value!r}; expected text, in quotes if it looks like a number")

    @property
    def is_local(self) -> bool:
        """Raises InputError where it is neither a folder nor a Hub id."""
        if Path(self.source).is_dir():
            return True
        if hub.is_repo_id(self.source):
            return False
        raise InputError(f"model {self.source!r} is no folder here and no Hub id (owner/name); give model.source one of the two")

    def obstacle(self) -> str | None:
        """Why the model can't be had, as far as asking for it tells; None: it can."""
        try:
            if not self.is_local:
                hub.resolve(self.source, self.revision)
        except InputError as error:
            return str(error)
        return None


def fetch_model(model: ModelSource, out: Path) -> None:
    """Bring config, tokenizer and safetensors of a model into `out`, checked, and say what came."""
    if model.is_local:
        if model.revision is not None:
            raise InputError(f"model.revision is {model.revision!r}, but {model.source} is a folder; set it to null")
        _copy(Path(model.source), out, model.source, None)
        return
    snapshot = hub.resolve(model.source, model.revision)
    if not hub.is_commit(model.revision):
        print(f"{model.source}: {model.revision or 'main'} is commit {snapshot.commit}; to get the same model every time, pin "
              f"it: -S model.revision={snapshot.commit}, or in params.yaml", flush=True)
    names = needed_files(snapshot)
    folder = hub.fetch(snapshot, ["config.json"])["config.json"].parent
    require_usable(read_config(folder), model.source)  # before the weights come
    hub.announce(snapshot, names, copy_to=out)
    hub.fetch(snapshot, names)
    _copy(folder, out, model.source, snapshot.commit)


def require_usable(config: Mapping, name: str) -> None:
    """Raises InputError unless a model of this config can be quantized: a known architecture, and not quantized already."""
    architecture_of(config)
    done = config.get("quantization_config")
    if done is not None:
        method = done.get("quant_method", "by a method it doesn't name") if isinstance(done, Mapping) else done
        raise InputError(f"{name} is quantized already ({method}); give the model that it was made from, which its page or card "
                         "names")


def require_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"{folder} has no tokenizer; expected {' or '.join(TOKENIZERS)} beside the weights")


def needed_files(snapshot: Snapshot) -> list[str]:
    """The files that the pipeline uses, small ones first: config, tokenizer, card, safetensors; never pickle or code.

    A repository often holds the same weights several times; the safetensors are those that its index names.
    """
    held = snapshot.files
    if "config.json" not in held:
        raise InputError(f"{snapshot.repo}{_as_cached(snapshot)} has no config.json; expected a model in the format of "
                         f"transformers. It holds {', '.join(sorted(held)[:6]) or 'nothing'}")
    companions = [name for name in sorted(held) if "/" not in name and name.endswith(COMPANION_KINDS)
                  and any(fnmatchcase(name, pattern) for pattern in COMPANIONS)]
    if not any(name in companions for name in TOKENIZERS):
        raise InputError(f"{snapshot.repo}{_as_cached(snapshot)} has no tokenizer; expected {' or '.join(TOKENIZERS)}")
    return ["config.json", *companions, *([CARD] if CARD in held else []), *([INDEX] if INDEX in held else []),
            *weight_files(snapshot)]


def weight_files(snapshot: Snapshot) -> list[str]:
    """The safetensors files of a repository: those its index names, or model.safetensors."""
    held: Mapping[str, RemoteFile] = snapshot.files
    if INDEX in held:
        shards = shard_names(hub.fetch(snapshot, [INDEX])[INDEX])
        missing = [name for name in shards if name not in held]
        if missing:
            raise InputError(f"{snapshot.repo}{_as_cached(snapshot)} lacks {', '.join(missing)}, which its index names")
        return shards
    if SINGLE in held:
        return [SINGLE]
    pickles = sorted(name for name in held if any(fnmatchcase(name, pattern) for pattern in PICKLES))
    if pickles:
        raise InputError(f"{snapshot.repo} has pickle weights only ({pickles[0]}), which can run code when opened; take a "
                         "revision that has safetensors (the Hub often offers one as a pull request: model.revision=refs/pr/1), "
                         "another copy of the model, or convert it where you trust it and give the folder")
    raise InputError(f"{snapshot.repo}{_as_cached(snapshot)} has no {SINGLE}; expected weights in safetensors")


def _as_cached(snapshot: Snapshot) -> str:
    return " (as far as it is in the cache; the Hub is out of reach)" if snapshot.cached else ""


def _copy(source: Path, out: Path, name: str, commit: str | None) -> None:
    checkpoint = Checkpoint(source)
    require_usable(checkpoint.config, name)
    require_tokenizer(source)
    license = License.from_card(source / CARD)
    shards = shard_paths(source)
    with whole_folder(out) as folder:
        for path in [source / "config.json", source / INDEX, *shards]:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        copy_companions(source, folder)
        write_manifest(folder, {"source": name, "revision": commit, "dtype": checkpoint.dtype,
                                "architecture": checkpoint.config["model_type"], "license": license.to_dict()})
    print(f"model {name}{f' at {commit}' if commit else ''}: {checkpoint.config['model_type']}, stored as {checkpoint.dtype}, "
          f"{size(sum(path.stat().st_size for path in shards))} of weights, licence {license.label}", flush=True)
