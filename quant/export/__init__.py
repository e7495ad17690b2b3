"""Write an artifact in a format that others read; no weight is quantized again.

    python -m quant.export models/int4 exported/int4 --format compressed-tensors
"""

from __future__ import annotations

from pathlib import Path

from quant.command import Parser
from quant.errors import InputError
from quant.export import compressed_tensors
from quant.files import atomic_folder

FORMATS = {"compressed-tensors": compressed_tensors.write}


def export(artifact: Path, out: Path, form: str) -> None:
    """Write the artifact's folder in a format of FORMATS into the folder `out`, which appears whole or not at all.

    Raises InputError if the format can't say exactly what the artifact holds, or if `out` holds something else.
    """
    if form not in FORMATS:
        raise InputError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
    if out.exists() and not (out / "manifest.json").is_file():
        raise InputError(f"{out} exists and is no earlier export (it has no manifest.json); name a new folder")
    if out.resolve() == artifact.resolve():
        raise InputError(f"{out} is the artifact itself; name another folder")
    with atomic_folder(out) as folder:
        FORMATS[form](artifact, folder)


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.export", description="Write an artifact in a format that others read.")
    parser.add_argument("artifact", type=Path, help="a folder that stages/quantize.py wrote, such as models/int4")
    parser.add_argument("out", type=Path, help="the folder to write, new or of an earlier export")
    parser.add_argument("--format", choices=FORMATS, required=True)
    given = parser.parse_args(words)
    export(given.artifact, given.out, given.format)

