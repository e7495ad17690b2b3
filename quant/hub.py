"""Models in: a local folder, or a Hub id at a pinned commit; and files by URL and sha256."""

from __future__ import annotations

import re
import shutil
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from quant.architectures import architecture_of
from quant.artifact import COMPANIONS, copy_companions
from quant.checkpoint import Checkpoint, shard_paths
from quant.errors import InputError, first_line
from quant.files import sha256_of, whole_folder, write_manifest

NEEDED = ("config.json", "*.safetensors", "*.safetensors.index.json", *COMPANIONS)


def fetch_model(source: str, revision: str | None, out: Path) -> None:
    """Bring config, tokenizer and safetensors of a model into `out`, checked, with a manifest of sha256.

    source: a folder, or a Hub id such as openai-community/gpt2, which needs `revision`: a commit of 40 digits.
    """
    if Path(source).is_dir():
        _copy_model(Path(source), out, source, None)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".download-") as folder:
            _download(source, revision, Path(folder))
            _copy_model(Path(folder), out, source, revision)
    else:
        raise InputError(f"model {source!r} is no folder here and no Hub id (owner/name); give model.source one of the two")


def fetch_file(url: str, sha256: str, out: Path) -> Path:
    """Download a file, and refuse it unless it has the sha256 that is expected."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response, open(out, "wb") as file:
            shutil.copyfileobj(response, file)
    except (OSError, HTTPException) as error:
        raise InputError(f"can't fetch {url}: {first_line(error)}; "
                         "fetch it elsewhere and give the file's path as the source") from None
    found = sha256_of(out)
    if found != sha256:
        out.unlink()
        raise InputError(f"{url} has sha256 {found}, expected {sha256}; refused")
    return out


def _download(source: str, revision: str | None, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(f"model {source} from the Hub needs model.revision, a commit of 40 hexadecimal digits; found "
                         f"{revision!r}. The model's page lists its commits")
    try:
        snapshot_download(source, revision=revision, allow_patterns=list(NEEDED), local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(f"can't fetch {source} at {revision[:12]} from the Hub: {first_line(error)}; give model.source "
                         "a local folder where the Hub can't be reached") from None


def _copy_model(source: Path, out: Path, name: str, revision: str | None) -> None:
    checkpoint = Checkpoint(source)
    architecture_of(checkpoint.config)
    if not any((source / tokenizer).is_file() for tokenizer in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{source} has no tokenizer; expected tokenizer.json beside the weights")
    with whole_folder(out) as folder:
        for path in [source / "config.json", source / "model.safetensors.index.json", *shard_paths(source)]:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        copy_companions(source, folder)
        about = {"source": name, "revision": revision, "dtype": checkpoint.dtype,
                 "architecture": checkpoint.config["model_type"]}
        write_manifest(folder, about)
