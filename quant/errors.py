"""InputError, the error for mistakes that the user can fix, and Refused, which costs one row; a message is one printable line."""

from __future__ import annotations

from pathlib import Path

MOST = 2000  # characters of a message


class InputError(Exception):
    """An unusable input. The message, one line, names the input, what was found, what was expected and what to do.

    Names and values in it may come from a file, so control characters are escaped and a long message is shortened.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))

    def within(self, what: str) -> InputError:
        """The same error, of the same type, whose message begins with `what`."""
        return type(self)(f"{what}: {self}")


class Refused(InputError):
    """A variant that can't be made or run for this model, or on this machine: it costs its row, and all others are made."""


def printable(text: str, most: int = MOST) -> str:
    """Text on one line: control characters as escapes, so that a terminal obeys none, and the middle cut out of a long text."""
    text = str(text)
    if len(text) > 4 * most:
        text = text[: 2 * most] + text[-2 * most:]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-(most // 2 - 7):]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], 400)


def is_ours(error: BaseException) -> bool:
    """Whether a line of this project raised an error, which is then a bug, and not one of a library."""
    frame = error.__traceback__
    while frame.tb_next:
        frame = frame.tb_next
    return Path(frame.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).resolve().parent)
