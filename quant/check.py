"""What will work with a model, and what it will take, before anything is fetched or computed.

    python -m quant.check openai-community/gpt2              # a Hub id, of its main branch
    python -m quant.check openai-community/gpt2@<commit> ptb # at a commit, and a text as in data.source
    python -m quant.check path/to/model path/to/text.txt

Reads config.json, the tokenizer and the headers of the safetensors (of a Hub id by range requests), never weights, and tells
for every variant of params.yaml whether it can be made, why not, and its size on disk and in memory.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from quant.hub import client as hub
from quant.model.checkpoint import DTYPES, Checkpoint, TensorInfo, read_config, shard_paths
from quant.text.corpus import FEW_LINES, TextSource, count_lines
from quant.errors import InputError, first_line
from quant.hub.fetch import CARD, TOKENIZERS, ModelSource, needed_files, require_tokenizer, require_usable, weight_files
from quant.preflight.forecast import Forecast, Model, forecasts
from quant.hub.license import License
from quant.runners.llama_cpp import library as llama_cpp
from quant.methods.llama_cpp.converter import splits_like_gpt2
from quant.model.needs import INTERMEDIATES
from quant.tensor.qtensor import CHUNK
from quant.progress import size

HEADERS_AT_ONCE = 8


@dataclass(frozen=True)
class Facts:
    """A model without its weights. folder: holds config and tokenizer; to_fetch: bytes a download would bring."""

    name: str
    folder: Path
    model: Model
    dtype: str
    files: int
    to_fetch: int
    license: License


def facts_of(source: ModelSource) -> Facts:
    """Of a folder, or of a repository of the Hub at a commit. Raises InputError where the pipeline can't use it."""
    if source.is_local:
        folder = Path(source.source)
        checkpoint = Checkpoint(folder)
        require_usable(checkpoint.config, source.source)
        require_tokenizer(folder)
        return Facts(source.source, folder, Model(checkpoint.config, checkpoint.tensors), checkpoint.dtype,
                     len(shard_paths(folder)), 0, License.from_card(folder / CARD))
    snapshot = hub.resolve(source.source, source.revision)
    names = needed_files(snapshot)
    weights = weight_files(snapshot)
    small = [name for name in names if name not in weights]
    folder = hub.fetch(snapshot, small)["config.json"].parent
    require_usable(read_config(folder), source.source)
    tensors = _remote_tensors(snapshot, weights)
    model = Model(read_config(folder), tensors)
    return Facts(f"{source.source} at {snapshot.commit}", folder, model, _main_dtype(tensors.values()), len(weights),
                 sum(snapshot.files[name].size for name in names), License.from_card(folder / CARD))


def gguf_obstacle(model: Model, folder: Path) -> str | None:
    """What keeps llama.cpp from a model: its architecture, or a tokenizer that its converter does not know; None: nothing."""
    names = model.config.get("architectures") or []
    try:
        if not names:
            return "config.json names no architectures, by which llama.cpp's converter goes"
        if not set(names) & llama_cpp.supported_architectures():
            return f"llama.cpp has no architecture for {', '.join(names)}"
        if (folder / "tokenizer.model").is_file() or not (folder / "tokenizer.json").is_file():
            return None  # SentencePiece, which it reads; or files that tell only when they are converted
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library has no narrower class
            raise InputError(f"{folder / 'tokenizer.json'} can't be read: {first_line(error)}; fetch the model again") from error
        tokens, places = max(tokenizer.get_vocab().values(), default=-1) + 1, model.config.get("vocab_size")
        if places is not None and tokens > places:
            return f"the tokenizer has {tokens:,} tokens, the model places for {places:,}; llama.cpp's converter refuses that"
        is_byte_level = type(tokenizer.model).__name__ == "BPE" and not tokenizer.model.byte_fallback
        if is_byte_level and not llama_cpp.knows_pre_tokenizer(tokenizer) and not splits_like_gpt2(tokenizer):
            return "llama.cpp does not know this BPE tokenizer, and it splits text unlike GPT-2's"
    except InputError as error:
        return str(error)
    return None


def describe(facts: Facts, found: list[Forecast], text: str | None, memory: int) -> str:
    """The facts, a table of the variants, and what they need of the disk and of `memory`, the bytes that are available."""
    model = facts.model
    architecture = model.architecture
    names = ", ".join(model.config.get("architectures") or [])
    tied = "shares the embedding's weight" if architecture.is_tied(model.config) else "has a weight of its own"
    lines = [
        ("model", facts.name),
        ("architecture", f"{model.config['model_type']} ({names}); {model.parameters:,} parameters; the head {tied}"),
        ("stored as", f"{facts.dtype}, {size(sum(t.bytes for t in model.tensors.values()))} in {facts.files} "
                      f"file{'s' if facts.files > 1 else ''}; quantized from that"),
        ("tokenizer", ", ".join(name for name in TOKENIZERS if (facts.folder / name).is_file())),
        ("licence", facts.license.label + (f"; to share a variant: {facts.license.warning}" if facts.license.warning else "")),
        *([("text", text)] if text else []),
    ]
    report = [f"{key:13} {value}" for key, value in lines]
    report += ["", *_table(found), "", *_demands(facts, found, memory)]
    return "\n".join(report)


def _table(found: list[Forecast]) -> list[str]:
    rows = [("variant", "made by", "on disk", "in memory", "can it be made?")]
    for one in found:
        sizes = ("-", "-") if one.obstacle else (size(one.file_bytes), size(one.held_bytes))
        verdict = f"no: {one.obstacle}" if one.obstacle else f"yes; {one.note}" if one.note else "yes"
        rows.append((one.name, one.stage, *sizes, verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [f"{name:{widths[0]}}  {stage:{widths[1]}}  {disk:>{widths[2]}}  {memory:>{widths[3]}}  {verdict}"
            for name, stage, disk, memory, verdict in rows]


def _demands(facts: Facts, found: list[Forecast], have: int) -> list[str]:
    model = facts.model
    made = [one for one in found if not one.obstacle]
    full = 4 * model.parameters
    largest = max(info.bytes for info in model.tensors.values())
    pieces = 4 * CHUNK * INTERMEDIATES * torch.get_num_threads()
    converts = any(one.stage.startswith("gguf@") for one in made)
    stored = sum(info.bytes for info in model.tensors.values())
    disk = stored * (1 + converts) + sum(one.file_bytes for one in made if one.stage != "-")
    needs = [
        ("download", 0, "no weights in memory"),
        ("quantize", 3 * largest + pieces, "a weight at a time, and pieces of it in 32 bits on every core"),
        ("bnb", full + max((one.held_bytes for one in made if one.stage.startswith("bnb@")), default=0),
         "base in 32 bits, and its result"),
        ("gguf", stored, "at most the file that is converted"),
        ("evaluate", full + max(one.held_bytes for one in made), "base in 32 bits, and the largest variant beside it"),
    ]
    free = shutil.disk_usage(Path()).free
    lines = [f"memory: {size(have)} available here; Python and its libraries take some 0.5 GB of it, and the weights of a stage"]
    for stage, count, why in needs:
        verdict = f", and can't run here: {size(count - have)} too little" if count > have else ""
        lines.append(f"  {stage:10} {size(count):>10}  ({why}){verdict}")
    fetched = f"{size(facts.to_fetch)} to fetch, " if facts.to_fetch else ""
    lines.append(f"disk: {fetched}{size(disk)} for models/, as much again in DVC's cache where the file system can't share "
                 f"blocks; {size(free)} free{'' if 2 * disk + facts.to_fetch < free else ', which is too little'}")
    return lines


def describe_text(source: TextSource) -> str:
    """A text, as far as can be told without fetching it."""
    if source.source in ("grammar", "ptb", "wikitext2"):
        known = {"grammar": "made here", "ptb": "3,761 lines, 82,430 words; LDC material, to be measured on only",
                 "wikitext2": "fetched from the Hub and checked by sha256; CC BY-SA"}
        return f"{source.source}: {known[source.source]}"
    if source.dataset is not None:
        snapshot = hub.resolve(source.dataset, source.revision, "dataset")
        return f"{source.source}: commit {snapshot.commit}, {len(snapshot.files)} files; streamed"
    lines = count_lines(source.source)
    few = f"; fewer than {FEW_LINES:,}: small differences between variants may be chance" if lines < FEW_LINES else ""
    return f"{source.source}: {lines:,} line{'s' if lines > 1 else ''}{few}"


def _remote_tensors(snapshot: hub.Snapshot, names: list[str]) -> dict[str, TensorInfo]:
    """The headers of safetensors files on the Hub, some at a time; none may describe more than the Hub lists."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    def header(name: str):
        return hub.patiently(lambda: HfApi().parse_safetensors_file_metadata(snapshot.repo, name, revision=snapshot.commit))

    tensors: dict[str, TensorInfo] = {}
    if snapshot.cached:
        return Checkpoint(hub.fetch(snapshot, names)[names[0]].parent).tensors
    with hub.in_one_line(snapshot.repo, snapshot.commit), ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        try:
            for file, found in zip(names, pool.map(header, names), strict=True):
                strange = {one.dtype for one in found.tensors.values()} - set(DTYPES)
                if strange:
                    raise InputError(f"{snapshot.repo}: {file} holds tensors of dtype {', '.join(sorted(strange))}; expected one "
                                     f"of {', '.join(DTYPES)}, so give a copy of the model in 16 or 32 bits")
                end, listed = max((one.data_offsets[1] for one in found.tensors.values()), default=0), snapshot.files[file].size
                if end > listed:
                    raise InputError(f"{snapshot.repo}: {file} has {listed:,} bytes, its header says more than {end:,}: cut off")
                tensors |= {name: TensorInfo(DTYPES[one.dtype], tuple(one.shape)) for name, one in found.tensors.items()}
        except SafetensorsParsingError as error:
            raise InputError(f"{snapshot.repo} has a safetensors header that can't be read: {first_line(error)}") from None
    if not tensors:
        raise InputError(f"{snapshot.repo} holds no tensor; expected the weights of a model")
    return tensors


def _main_dtype(tensors: Iterable[TensorInfo]) -> str:
    sizes: dict = {}
    for info in tensors:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.bytes
    return str(max(sizes, key=sizes.get)).removeprefix("torch.")


def available_memory() -> int:
    """Bytes that programs can take without swapping, as the kernel estimates them."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main(words: list[str]) -> None:
    if not 1 <= len(words) <= 2:
        raise InputError("expected MODEL [TEXT]: a folder or owner/name[@commit], and a text as data.source takes it")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    name, _, revision = words[0].partition("@") if not Path(words[0]).is_dir() else (words[0], "", "")
    text = describe_text(TextSource(words[1])) if len(words) == 2 else None
    facts = facts_of(ModelSource(name, revision or None))
    found = forecasts(facts.model, params, gguf_obstacle(facts.model, facts.folder))
    print(describe(facts, found, text, available_memory()))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: check: {error}")
