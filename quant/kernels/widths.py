"""One compiled function for all widths of codes, or other numbers, where each needs one of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numba import njit


def by_number(make: Callable[[int], Callable], numbers: Sequence[int]):
    """Make a function of (number, *arguments) that calls make(number), compiled for each of some numbers, on the arguments. Any
    other number is taken for the last one."""
    number, *others = numbers
    of_this, of_others = make(number), by_number(make, others) if others else None

    @njit(nogil=True)
    def chosen(wanted, *arguments):
        if of_others is None or wanted == number:
            return of_this(*arguments)
        return of_others(wanted, *arguments)

    return chosen


def by_width(make: Callable[[int], Callable]):
    """Make a function of (bits, *arguments) that calls make(bits), compiled for each width from 2 to 8 bits, on the arguments."""
    return by_number(make, (8, 4, 3, 2, 6, 5, 7))
