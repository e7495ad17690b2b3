"""One compiled function for all widths of codes, where each width needs one of its own."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit


def by_width(make: Callable[[int], Callable]):
    """Make a function of (bits, *arguments) that calls make(bits), compiled for each width from 2 to 8 bits, on the arguments."""
    of_2, of_3, of_4, of_5, of_6, of_7, of_8 = (make(bits) for bits in range(2, 9))

    @njit(nogil=True)
    def chosen(bits, *arguments):
        if bits == 8:
            return of_8(*arguments)
        if bits == 4:
            return of_4(*arguments)
        if bits == 3:
            return of_3(*arguments)
        if bits == 2:
            return of_2(*arguments)
        if bits == 6:
            return of_6(*arguments)
        if bits == 5:
            return of_5(*arguments)
        return of_7(*arguments)

    return chosen
