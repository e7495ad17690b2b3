"""The one error a user is meant to read."""


class InputError(Exception):
    """Something the user gave can't be used. The message names it, what was found, and what is needed."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message that has to fit one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
