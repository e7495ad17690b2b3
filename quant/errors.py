"""InputError, the error for mistakes that the user can fix."""


class InputError(Exception):
    """An unusable input. The message, one line, names the input, what was found, what was expected and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
