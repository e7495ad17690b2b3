"""Write the locks of this folder: every distribution that the environment needs, with the hashes of its files: make lock

requirements.txt and tests/requirements.txt name what is used directly. `uv pip compile` resolves them for every platform and
Python version, and reads the hashes from the index. Set-up installs with `pip install --require-hashes --no-deps`:

- build.lock: setuptools, which builds the few distributions that have no wheel;
- pipeline.lock: the rest;
- cuda.lock: what a CUDA build of torch needs besides; left out where torch misses nothing without it;
- tests.lock: what the tests need besides;
- cpu.lock: the build of torch for the CPU alone, 2.13.0+cpu, which some indexes offer; tried first. Its hashes are that of the
  file which the index of the machine at hand offers, if it does, and those of the same version in the lock before.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from quant.command import Parser, run
from quant.errors import InputError, first_line
from quant.files import write_text

FOLDER = Path(__file__).parent
BUILD = "setuptools"
CPU = FOLDER / "cpu.lock"
CUDA = re.compile(r"nvidia-|cuda-|triton$")  # distributions that torch needs for CUDA alone
ENTRY = re.compile(r"^([\w.-]+)==([^\s;]+)(?: ; ([^\\\n]+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE)
HEADER = "# Written by `make lock` (quant/supply/locks.py); not to be edited.\n"


@dataclass(frozen=True)
class Locked:
    """A distribution of a lock: its name, version, the marker of the platforms that need it, and hashes of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")]
        return " \\\n    ".join([*lines, *(f"--hash=sha256:{one}" for one in self.hashes)]) + "\n"


def read_lock(text: str, what: str) -> list[Locked]:
    """The distributions of a lock. Raises InputError, which begins with `what`, for a line that is none of a lock."""
    rest = ENTRY.sub("", text)
    strange = next((line for line in rest.splitlines() if line.strip() and not line.startswith("#")), None)
    if strange:
        raise InputError(f"{what} has the line {strange!r}; expected name==version with hashes: write it again with make lock")
    return [Locked(name, version, marker, tuple(re.findall(r"sha256:(\w+)", hashes)))
            for name, version, marker, hashes in ENTRY.findall(text)]


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m quant.supply.locks", description=__doc__.partition("\n")[0])
    parser.add_argument("uv", help="the program uv")
    uv = parser.parse_args(arguments).uv
    files = _sorted_into_files(_resolve(uv))
    (torch,) = (one for one in files["pipeline.lock"] if one.name == "torch")
    before = read_lock(CPU.read_text(encoding="utf-8"), str(CPU)) if CPU.is_file() else []
    for name, locked in {**files, CPU.name: [_cpu_build(torch.version, before)]}.items():
        write_text(FOLDER / name, HEADER + "".join(map(str, locked)))
        print(f"{name}: {len(locked)} distributions")


def _resolve(uv: str) -> dict[str, list[Locked]]:
    """What requirements.txt needs, and what both lists need, in the same versions."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"  # read by the second call, which keeps its versions where they fit
        for name, lists in (("both", ["requirements.txt", "tests/requirements.txt"]), ("pipeline", ["requirements.txt"])):
            _call([uv, "pip", "compile", *lists, "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header",
                   "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet", "--output-file", str(out)])
            found[name] = read_lock(out.read_text(encoding="utf-8"), "the output of uv")
    return found


def _sorted_into_files(found: dict[str, list[Locked]]) -> dict[str, list[Locked]]:
    """The distributions of each lock. Triton, which tests/requirements.txt names too, stands in two."""
    names = {one.name for one in found["pipeline"]}
    files: dict[str, list[Locked]] = {"build.lock": [], "pipeline.lock": [], "cuda.lock": [], "tests.lock": []}
    for one in found["pipeline"]:
        name = "build.lock" if one.name == BUILD else "cuda.lock" if CUDA.match(one.name) else "pipeline.lock"
        files[name].append(one)
    files["tests.lock"] = [one for one in found["both"] if one.name not in names or one.name == "triton"]
    return files


def _cpu_build(version: str, before: list[Locked]) -> Locked:
    """The CPU build of this version of torch. Raises InputError where neither the index nor the lock before knows its hash."""
    name, version = "torch", f"{version}+cpu"
    digests = {digest for old in before if old.version == version for digest in old.hashes}
    report = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps",
                             "--report", "-", f"{name}=={version}"], capture_output=True, text=True)
    if report.returncode == 0:
        digests |= {one["download_info"]["archive_info"]["hashes"]["sha256"] for one in json.loads(report.stdout)["install"]}
    if not digests:
        raise InputError(f"pip finds no {name}=={version}; run make lock where an index offers that build")
    return Locked(name, version, "", tuple(sorted(digests)))


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{command[0]} can't be run ({error.strerror}); make lock installs uv") from None
    if done.returncode:
        raise InputError(f"{Path(command[0]).name} {' '.join(command[1:3])} failed: {first_line(RuntimeError(done.stderr))}")
    return done.stdout


if __name__ == "__main__":
    run(main)
