"""The environment of the other quantizers: an interpreter of its own, in which a child process quantizes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from quant.errors import InputError, Refused
from quant.methods.peers.spec import PACKAGES

ROOT = Path(__file__).resolve().parents[3]
VARIABLE = "PEERS_PYTHON"  # names another interpreter
INTERPRETER = ROOT / ".venv-peers" / "bin" / "python"
WORKER = "quant.methods.peers.worker"


def interpreter() -> Path:
    """The interpreter of the environment. Raises InputError where there is none."""
    path = Path(os.environ.get(VARIABLE) or INTERPRETER)
    if not path.is_file():
        raise InputError(f"there is no {path}, whose packages quantize; make it with `make peers`, or let {VARIABLE} name a "
                         "Python that has them")
    return path


def missing(package: str) -> str | None:
    """Why a package can't run here, in a line; None where it can."""
    try:
        python = interpreter()
    except InputError as error:
        return str(error)
    module = PACKAGES[package].module
    script = f"import importlib.util as u; import sys; sys.exit(u.find_spec({module.partition('.')[0]!r}) is None)"
    if subprocess.run([python, "-c", script], capture_output=True, env=_variables()).returncode:
        return f"{python} has no {PACKAGES[package].name}; make peers installs it"
    return None


def run_worker(job: Path, package: str) -> None:
    """Run the worker on the folder of a job. Raises Refused, with the last line it wrote, where it fails."""
    reason = missing(package)
    if reason:
        raise Refused(reason)
    log = job / "log.txt"
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run([interpreter(), "-m", WORKER, str(job)], stdout=file, stderr=subprocess.STDOUT, cwd=job,
                              env=_variables())
    if done.returncode or not (job / "found.json").is_file():
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise Refused(f"{package} could not quantize the model (status {done.returncode}): "
                      f"{(lines or ['no message'])[-1][:300]}")


def _variables() -> dict[str, str]:
    """Of the child: this project's code, no network, no GPU, and nothing of the parent's own environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
