"""What commands run as `python -m quant.…` share: words and a folder that can't be used end as one line, not as a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import yaml

from quant.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument that can't be used is an InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def whole_number(word: str) -> int:
    """A type of argument: a whole number from 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 1")
    return int(word)


def project_params() -> dict:
    """params.yaml of the folder the command runs in."""
    path = Path("params.yaml")
    if not path.is_file():
        raise InputError(f"there is no params.yaml in {Path.cwd()}; run this in the project's folder")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line's words; what the user can mend ends as one line and status 1."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
