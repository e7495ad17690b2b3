"""Turns what transformers raises while it opens a folder into one line.

A folder that passed every check here may still be refused there: the libraries read more keys than this project does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.command import remedy
from quant.errors import InputError, first_line, is_ours


@contextmanager
def opened_by_transformers(folder: Path) -> Iterator[None]:
    """Raise InputError, with the name of the folder, for an error that the libraries raise within the block.

    An error that this project's own code raises there is a bug and stays as it is; so does one of the machine, such as a full
    memory, which quant.command tells.
    """
    try:
        yield
    except Exception as error:  # the libraries have no narrower class in common
        if remedy(error) is not None or is_ours(error):
            raise
        raise InputError(f"{folder} can't be opened by transformers ({type(error).__name__}: {first_line(error)}); its config "
                         "or its tokenizer asks for what there is not: fetch or make it again") from error
