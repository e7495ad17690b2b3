"""Runs a function on pieces of a tensor in parallel, one piece per core at a time.

torch splits every operation over its threads and waits for all of them at the end of each. Pieces that fit a core's cache finish
faster when each core takes whole pieces, and a thread that is delayed on a busy machine does not hold up the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch


def over_cores(function: Callable, pieces: Sequence) -> list:
    """Call the function on each piece, on as many threads as torch would use; the results in the order of the pieces."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads == 1:
        return [function(piece) for piece in pieces]
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            return list(pool.map(function, pieces))
    finally:
        torch.set_num_threads(before)
