"""GGUF by llama.cpp itself: its converter from a Hugging Face folder, then its quantizer.

A GGUF file carries weights, tokenizer and metadata; each tensor names its own type. K-quants (Q4_K and its like) work
on blocks of 256 weights of a row, and llama.cpp falls back to another type where 256 does not divide the row.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from quant.model.checkpoint import Checkpoint
from quant.errors import InputError
from quant.files import read_json, whole_folder, write_json, write_manifest
from quant.runners.llama_cpp import library as llama_cpp
from quant.tensor.scheme import known_keys

OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Spec:
    """type: a file type of llama.cpp, such as F16, Q8_0, Q4_K_M or Q4_0."""

    type: str

    @classmethod
    def from_dict(cls, values: dict) -> Spec:
        if "type" not in values:
            raise InputError(f"a gguf row needs a type, such as Q4_K_M; found {values}")
        return cls(**known_keys(cls, values, "gguf"))


def convert(base: Path, out: Path) -> None:
    """The model in `base`, in the precision it is stored in, to out/model.gguf, by llama.cpp's converter.

    Raises InputError, before any work, where llama.cpp has no such architecture.
    """
    checkpoint = Checkpoint(base)
    names = checkpoint.config.get("architectures") or []
    if not set(names) & llama_cpp.supported_architectures():
        raise InputError(f"llama.cpp has no architecture for {', '.join(names) or checkpoint.config['model_type']}; "
                         "leave the gguf stages out: empty the gguf section of params.yaml (gguf: {})")
    outtype = OUTTYPES.get(checkpoint.dtype, "f32")
    with whole_folder(out) as folder, tempfile.TemporaryDirectory() as beside:
        about = Path(beside) / "metadata.json"
        write_json(about, metadata(base))
        command = [sys.executable, "-m", "quant.methods.llama_cpp.converter", str(base), "--outfile",
                   str(folder / "model.gguf"), "--outtype", outtype, "--metadata", str(about)]
        done = subprocess.run(command, env=_child_environment(), capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise InputError(f"llama.cpp's converter refused {base}: {lines[-1] if lines else done.returncode}")
        write_manifest(folder, {"method": "llama.cpp", "type": outtype.upper()})


def quantize(source: Path, spec: Spec, out: Path) -> None:
    """out/model.gguf: the GGUF file `source` in another type, by llama.cpp's quantizer."""
    check_gguf(source)
    low_level = llama_cpp.bindings()
    file_type = getattr(low_level, f"LLAMA_FTYPE_MOSTLY_{spec.type}", None)
    if file_type is None:
        prefix = "LLAMA_FTYPE_MOSTLY_"
        known = ", ".join(sorted(name.removeprefix(prefix) for name in dir(low_level) if name.startswith(prefix)))
        raise InputError(f"gguf type is {spec.type!r}; llama.cpp has {known}")
    options = low_level.llama_model_quantize_default_params()
    options.ftype = file_type
    options.nthread = os.cpu_count() or 1
    with whole_folder(out) as folder:
        target = folder / "model.gguf"
        status = low_level.llama_model_quantize(str(source).encode(), str(target).encode(), options)
        if status or not target.is_file():
            raise InputError(f"llama.cpp could not quantize {source} to {spec.type} (status {status}); some types need "
                             "an importance matrix, which this pipeline does not make")
        write_manifest(folder, {"method": "llama.cpp", "type": spec.type})


def metadata(base: Path) -> dict[str, str | list]:
    """What a GGUF file says of itself, in GGUF's keys: the model's name and where it came from, as its manifest has it.

    The type is not here: the quantizer writes it itself (general.file_type).
    """
    path = Path(base) / "manifest.json"
    manifest = read_json(path) if path.is_file() else {"source": Path(base).name, "revision": None}
    source, commit = manifest["source"], manifest["revision"]
    name = Path(source).name
    about: dict[str, str | list] = {
        "general.name": name,
        "general.description": f"{f'{source} at commit {commit}' if commit else name}, converted by llama.cpp",
    }
    if commit:
        url = f"https://huggingface.co/{source}"
        about["general.source.url"] = f"{url}/tree/{commit}"
        about["general.source.repo_url"] = url
        about["general.base_models"] = [{"name": name, "organization": source.split("/")[0], "repo_url": url}]
    return about


def check_gguf(path: Path) -> None:
    """Refuse a file whose GGUF header can't be true, before a reader trusts its counts."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        raise InputError(f"{path} is no GGUF file: {size} bytes, beginning with {head[:4]!r}")
    version, tensors, pairs = struct.unpack("<IQQ", head[4:])
    # A tensor's entry takes at least 24 bytes, a metadata pair at least 13.
    if not 2 <= version <= 3 or tensors * 24 + pairs * 13 > size:
        raise InputError(f"{path} has a corrupt GGUF header: version {version}, {tensors} tensors, {pairs} metadata "
                         f"pairs in {size} bytes")


def _child_environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
