"""Shared by every stage: the paths of the pipeline's files, the reader of params.yaml, and one-line errors."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

import quant
from quant.command import quiet_libraries, remedy
from quant.errors import InputError
from quant.outside import LARGEST_YAML, parse_yaml, read_bytes, shown
from quant.recover import keep_lock

PARAMS, REQUIREMENTS = Path("params.yaml"), Path("requirements.txt")
BASE, MODELS, PREPARED = Path("models/base"), Path("models"), Path("models/prepared")
PLAN, TEXT, REFERENCE, PRIVATE = Path("data/plan"), Path("data/eval"), Path("data/reference"), Path("data/private")
TRAINING = Path("data/training")
REPORTS, STUDIES = Path("reports"), Path("reports/studies")


def parameters() -> dict:
    """All of params.yaml. Raises InputError where the file is missing or broken."""
    if not PARAMS.is_file():
        raise InputError(f"there is no params.yaml in {Path.cwd()}; run this in the project's folder")
    try:
        text = read_bytes(PARAMS, LARGEST_YAML).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"params.yaml is not YAML: {error}") from None
    params = parse_yaml(text, "params.yaml")
    if not isinstance(params, dict) or not all(isinstance(section, str) for section in params):
        raise InputError(f"params.yaml holds {shown(params)}; expected sections such as model, data, variants")
    return params


def folder_of(variant: str) -> Path:
    """The folder of a variant, or of the base."""
    return MODELS / variant


def run(stage: Callable[..., None]) -> None:
    """Run a stage on the arguments; an error the user can fix prints one line and exits 1."""
    gc.set_threshold(100_000, 50, 50)  # a stage is mostly imports, which Python's default thresholds make a fifth slower
    quiet_libraries()
    name, arguments = Path(sys.argv[0]).stem, sys.argv[1:]
    expected = " ".join(parameter.upper() for parameter in inspect.signature(stage).parameters)
    if arguments in (["--help"], ["-h"]):
        print(f"{(inspect.getmodule(stage).__doc__ or '').strip()}\n\nusage: python -m stages.{name} {expected}".rstrip())
        return
    try:
        inspect.signature(stage).bind(*arguments)
    except TypeError:
        sys.exit(f"error: {name} takes {expected or 'no arguments'}; found {' '.join(arguments) or 'none'}")
    try:
        _require_this_code()
        keep_lock()
        if os.environ.get("RAY_ADDRESS"):
            _run_remotely(stage, name, arguments)
        else:
            stage(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # a bug is raised again
        line = remedy(error)
        if line is None:
            raise
        sys.exit(f"error: {' '.join([name, *arguments])}: {line}")


def _run_remotely(stage: Callable[..., None], name: str, arguments: list[str]) -> None:
    """Run a stage on a machine of the cluster, or here, if it is none of those that are worth it."""
    from quant.cluster.stages import REMOTE, run_remotely

    if name not in REMOTE:
        stage(*arguments)
    elif status := run_remotely(name, arguments):
        sys.exit(status)


def _require_this_code() -> None:
    """Raise InputError if another checkout's code would run on this project's files: DVC tracks only the project's own code."""
    here, used = Path("quant").resolve(), Path(quant.__file__).resolve().parent
    if here.is_dir() and here != used:
        raise InputError(f"this is the code of {used}, and the project's own is {here}; run "
                         f"python -m stages.{Path(sys.argv[0]).stem} in the project's folder")
