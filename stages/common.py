"""What every stage shares: the project on the import path, its declared parameters, and errors told in one line."""

from __future__ import annotations

import errno
import gc
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

gc.set_threshold(100_000, 50, 50)  # a stage is mostly imports, which Python's usual threshold makes a fifth slower
sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of stages, whose gguf.py would hide the package gguf
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from quant.errors import InputError, first_line


def parameters() -> dict:
    """The parameters that dvc.yaml declares for the running stage, and no others: reading another is a KeyError.

    As dvc.api.params_show(stages=...) gives them, in a small part of the second and a half that it takes, fifty times a
    run. Run by hand, outside DVC, a stage sees all of params.yaml.
    """
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    group, _, key = os.environ.get("DVC_STAGE", "").partition("@")
    if not group:
        return params
    definition = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][group]
    declared: dict = {}
    for name in definition.get("do", definition).get("params", []):
        section, _, row = name.replace("${key}", key).partition(".")
        if row:
            declared.setdefault(section, {})[row] = params[section][row]
        else:
            declared[section] = params[section]
    return declared


def run(stage: Callable[..., None]) -> None:
    """Call a stage with the command line's words; what the user can mend ends as one line and status 1."""
    words = sys.argv[1:]
    try:
        inspect.signature(stage).bind(*words)
    except TypeError:
        names = " ".join(name.upper() for name in inspect.signature(stage).parameters) or "no words"
        sys.exit(f"error: {Path(sys.argv[0]).stem} takes {names}; found {' '.join(words) or 'none'}")
    try:
        stage(*words)
    except InputError as error:
        sys.exit(f"error: {_what()}: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(f"error: {_what()}: can't write ({first_line(error)}); free some space and run the same command again")
    except KeyboardInterrupt:
        sys.exit(130)


def _what() -> str:
    return " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]])
