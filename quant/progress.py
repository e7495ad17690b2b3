"""Progress with the time left: on a terminal a moving bar, in a file nothing but the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm


def progress(items: Sequence, what: str, size: Callable | None = None) -> Iterator:
    """Yield `items`; the bar appears after a second of work and counts items, or the sum of size(item)."""
    total = len(items) if size is None else sum(map(size, items))
    units = {} if size is None else {"unit": "B", "unit_scale": True}
    with tqdm(total=total, desc=what, disable=None, delay=1, leave=False, **units) as bar:
        for item in items:
            yield item
            bar.update(1 if size is None else size(item))
