"""Shared by the `python -m quant...` commands: a bad argument ends in a one-line error, not a traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from quant.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what it takes")


def whole_number(word: str) -> int:
    """argparse type: a whole number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of at least 1")
    return int(word)


def run(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the arguments; an error the user can fix prints one line and exits 1."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
