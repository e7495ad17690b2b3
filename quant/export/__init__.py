"""Exports an artifact to a format of other projects; no weight is quantized again.

    python -m quant.export models/int4 exported/int4 --format compressed-tensors
    python -m quant.export models/int4-g64 exported/int4-gptq --format gptq
    python -m quant.export models/cal-q4_k exported/model.gguf --format gguf
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from quant.command import Parser
from quant.errors import InputError
from quant.files import atomic_folder

FORMATS = {  # a module here, with a function write(artifact, out) -> a note on how to open it, or None
    "compressed-tensors": "compressed_tensors", "gptq": "gptq", "awq": "awq", "gguf": "gguf",
}  # fmt: skip
SUFFIXES = {"gguf": ".gguf"}  # of formats that are one file


def export(artifact: Path, out: Path, form: str) -> str | None:
    """Write the artifact in the folder `artifact`, in a format of FORMATS, to the folder or file `out`, which appears whole or
    not at all. Returns a line about what opens it, where that needs more than its name.

    Raises InputError if the format can't represent the artifact exactly, or if `out` is not an earlier export.
    """
    if form not in FORMATS:
        raise InputError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
    if not (artifact / "config.json").is_file():
        raise InputError(f"{artifact} has no config.json; expected the folder of a variant from scratch, such as models/int4")
    module = import_module(f"{__name__}.{FORMATS[form]}")
    if form in SUFFIXES:
        if out.suffix != SUFFIXES[form] or out.is_dir():
            raise InputError(f"{out} is to be a file of the format {form}; expected a name that ends in {SUFFIXES[form]}")
        return module.write(artifact, out)
    if out.exists() and not (out / "manifest.json").is_file():
        raise InputError(f"{out} exists and is not an earlier export (it has no manifest.json); name a new folder")
    if out.resolve() == artifact.resolve():
        raise InputError(f"{out} is the artifact itself; name another folder")
    with atomic_folder(out) as folder:
        return module.write(artifact, folder)


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.export", description="Export an artifact to a format of other projects.")
    parser.add_argument("artifact", type=Path, help="the folder of a variant from scratch, such as models/int4")
    parser.add_argument("out", type=Path, help="the folder to write, new or of an earlier export, or a file name.gguf")
    parser.add_argument("--format", choices=FORMATS, required=True)
    given = parser.parse_args(words)
    note = export(given.artifact, given.out, given.format)
    if note:
        print(note, flush=True)
