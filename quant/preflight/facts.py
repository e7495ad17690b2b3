"""Reads a model's facts without its weights: from a folder, or from the Hub by range requests for the headers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quant.errors import InputError, first_line
from quant.hub.download import fetch
from quant.hub.errors import translating_errors
from quant.hub.fetch import CARD, needed_files, require_usable, weight_files_of
from quant.hub.license import License
from quant.hub.repository import Snapshot, resolve
from quant.hub.retry import retrying
from quant.hub.source import ModelSource
from quant.model.checkpoint import Checkpoint
from quant.model.config import read_config
from quant.model.folder import require_tokenizer, weight_paths
from quant.model.inventory import Inventory, take_inventory
from quant.model.safetensors_file import DTYPES, TensorInfo

HEADERS_AT_ONCE = 8


@dataclass(frozen=True)
class Facts:
    """Facts of a model. folder: holds its config and tokenizer; files: number of weight files; to_fetch: bytes to download."""

    name: str
    folder: Path
    inventory: Inventory
    files: int
    to_fetch: int
    license: License


def facts_of(source: ModelSource) -> Facts:
    """The facts of a folder, or of a Hub repository at a commit. Raises InputError if the pipeline can't use the model."""
    if source.is_local:
        folder = Path(source.source)
        checkpoint = Checkpoint(folder)
        require_usable(checkpoint.config, source.source)
        require_tokenizer(folder)
        return Facts(source.source, folder, checkpoint.inventory, len(weight_paths(folder)), 0, License.from_card(folder / CARD))
    snapshot = resolve(source.source, source.revision)
    names = needed_files(snapshot)
    weights = weight_files_of(snapshot)
    folder = fetch(snapshot, [name for name in names if name not in weights])["config.json"].parent
    config = read_config(folder)
    require_usable(config, source.source)
    inventory = take_inventory(config, _remote_tensors(snapshot, weights))
    return Facts(f"{source.source} at {snapshot.commit}", folder, inventory, len(weights),
                 sum(snapshot.files[name].size for name in names), License.from_card(folder / CARD))


def _remote_tensors(snapshot: Snapshot, names: list[str]) -> dict[str, TensorInfo]:
    """The tensors of safetensors files on the Hub. Raises InputError for a header that does not fit its file's listed size."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    def header(name: str):
        return retrying(lambda: HfApi().parse_safetensors_file_metadata(snapshot.repo, name, revision=snapshot.commit))

    tensors: dict[str, TensorInfo] = {}
    if snapshot.cached:
        return Checkpoint(fetch(snapshot, names)[names[0]].parent).tensors
    with translating_errors(snapshot.repo, snapshot.commit), ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        try:
            for file, found in zip(names, pool.map(header, names), strict=True):
                unknown = {one.dtype for one in found.tensors.values()} - set(DTYPES)
                if unknown:
                    raise InputError(f"{snapshot.repo}: {file} holds tensors of dtype {', '.join(sorted(unknown))}; expected one "
                                     f"of {', '.join(DTYPES)}: give a copy of the model in 16 or 32 bits")
                end, listed = max((one.data_offsets[1] for one in found.tensors.values()), default=0), snapshot.files[file].size
                if end > listed:
                    raise InputError(f"{snapshot.repo}: {file} has {listed:,} bytes, its header describes {end:,}: truncated")
                tensors |= {name: TensorInfo(DTYPES[one.dtype], tuple(one.shape)) for name, one in found.tensors.items()}
        except SafetensorsParsingError as error:
            raise InputError(f"{snapshot.repo} has a safetensors header that can't be read: {first_line(error)}") from None
    if not tensors:
        raise InputError(f"{snapshot.repo} holds no tensor; expected the weights of a model")
    return tensors
