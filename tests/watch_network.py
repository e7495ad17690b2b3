"""A sitecustomize.py, which Python imports when it begins: notes and refuses connections to other machines.

Appends to the file that WATCHED names: a line "begun" for each process, one for each look-up of a name and each connection or
datagram that does not stay on this machine.
"""

import os
import sys

NOTES = os.environ["WATCHED"]
HERE = ("127.", "::1", "localhost")


def note(line: str) -> None:
    with os.fdopen(os.open(NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as file:
        file.write(line + "\n")


def watch(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = (arguments[0],)
    else:
        return
    if isinstance(address, tuple) and address[0] and not str(address[0]).startswith(HERE):
        note(f"{event} {address} {sys.orig_argv}")
        raise OSError(f"no connection to {address}")


note(f"begun {' '.join(sys.orig_argv[1:])[:200]}")
sys.addaudithook(watch)
