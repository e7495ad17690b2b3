"""A progress bar with the time remaining, on a terminal only; and readable sizes and durations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

MIB = 2**20


def progress(items: Sequence, what: str, size: Callable | None = None, note: Callable[[], str] | None = None) -> Iterator:
    """Yield `items` under a bar called `what`, which counts items, or bytes by size(item), and appears after a second.

    note: gives what stands at the bar's end after each item, such as a loss."""
    from tqdm import tqdm  # a late import: most users of this module only format sizes

    total = len(items) if size is None else sum(map(size, items))
    units = {} if size is None else {"unit": "B", "unit_scale": True}
    with tqdm(total=total, desc=what, disable=None, delay=1, leave=False, **units) as bar:
        for item in items:
            yield item
            if note is not None:
                bar.set_postfix_str(note(), refresh=False)
            bar.update(1 if size is None else size(item))


def size(count: float) -> str:
    """Format bytes: 548 MB, 1.2 GB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Format seconds: 20 s, 14 min, 3.2 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
