"""Shared by commands and stages: an error that the user can fix ends in one line, not a traceback."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from quant.errors import InputError, printable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO)
NO_MEMORY = ("can't allocate memory", "failed to map segment from shared object")  # of torch, of the loader of libraries


OUT_OF_MEMORY = ("not enough memory (none was left); python -m quant.check MODEL says what each stage needs; close other "
                 "programs, or take a smaller model")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what it takes")


def quiet_libraries() -> None:
    """Let libraries log errors only; bitsandbytes has a warning for every product."""
    logging.getLogger().setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def status_of(end: SystemExit) -> int:
    """The exit status that Python gives; a text is printed, as Python does."""
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def whole_number(word: str) -> int:
    """argparse type: a whole number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of at least 1")
    return int(word)


def remedy(error: Exception) -> str | None:
    """One line for an error that comes from the user's input or machine: a full disk, no right, no memory; None for a bug."""
    if isinstance(error, InputError):
        return str(error)
    if type(error) is MemoryError and not error.args:  # there may be too little left to make a message
        return OUT_OF_MEMORY
    text = printable(str(error), 300)
    number = getattr(error, "errno", None)
    wrapped = re.search(r"\(os error (\d+)\)|unable to mmap .*\((\d+)\)", str(error))  # of safetensors and of torch
    if number is None and wrapped:
        number = int(wrapped[1] or wrapped[2])
    if number in FULL:
        return f"can't write ({text}); free some space and run the same command again"
    if number in REFUSED:
        return f"can't use a file or a folder ({text}); this user must be able to read it, and to write where results go"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in str(error) for words in NO_MEMORY):
        return OUT_OF_MEMORY.replace("none was left", text)
    return None


def run(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the arguments; an error the user can fix prints one line and exits 1."""
    quiet_libraries()
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # the reader, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        line = remedy(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")
