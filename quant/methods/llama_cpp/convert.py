"""Converts a Hugging Face folder to GGUF without changing its precision, with llama.cpp's own converter in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from quant.errors import Refused
from quant.files import atomic_folder, require_space, write_json, write_manifest
from quant.methods.llama_cpp.support import weights_obstacle
from quant.model.checkpoint import Checkpoint
from quant.outside import read_json

OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def convert(base: Path, out: Path) -> None:
    """Convert the model in `base` to out/model.gguf, in the precision it is stored in.

    Raises Refused where llama.cpp does not support the model's weights, before any work, and where its converter fails.
    """
    checkpoint = Checkpoint(base)
    reason = weights_obstacle(checkpoint.inventory)
    if reason:
        raise Refused(reason)
    outtype = OUTTYPES.get(checkpoint.inventory.dtype, "f32")
    with atomic_folder(out) as folder, tempfile.TemporaryDirectory() as beside:
        about = Path(beside) / "metadata.json"
        write_json(about, metadata(base))
        command = [sys.executable, "-m", "quant.methods.llama_cpp.converter", str(base), "--outfile",
                   str(folder / "model.gguf"), "--outtype", outtype, "--metadata", str(about)]
        done = subprocess.run(command, env=_child_environment(), capture_output=True, text=True)
        if done.returncode:
            require_space(out, checkpoint.inventory.stored_bytes)
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise Refused(f"llama.cpp's converter refused {base}: {lines[-1] if lines else done.returncode}")
        write_manifest(folder, {"method": "llama_cpp", "runtime": "llama_cpp", "type": outtype.upper()})


def metadata(base: Path) -> dict[str, str | list]:
    """Metadata of the GGUF file, by GGUF's keys: the model's name and its source, from the base's manifest.

    The quantizer adds the file's type itself (general.file_type).
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


def _child_environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
