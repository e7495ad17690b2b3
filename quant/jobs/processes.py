"""Forked processes with a group of their own, whose output is passed on line by line under a name."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from quant.errors import InputError

POLL_S = 0.2  # between looks for processes that ended while one that they had started holds their output
TERMINATE_S, KILL_S = 0.2, 5.0  # between two polite signals, and until the impolite one
KEPT_LINES = 40
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Job:
    """A running process. begun: time.monotonic() of its start; text: what it returned so far; said: its last lines; prefix: what
    stands before each of its lines."""

    name: str
    pid: int
    begun: float
    prefix: str
    text: bytearray = field(default_factory=bytearray)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


@dataclass(frozen=True)
class Ended:
    """A process that ended. returned: the text of its function; None if that failed. said: its last lines."""

    name: str
    seconds: float
    returned: str | None
    said: list[str]


class Processes:
    """Runs functions in forked processes. None of them survives `stop`."""

    def __init__(self) -> None:
        self.running: dict[str, Job] = {}
        self._selector = selectors.DefaultSelector()

    def start(self, name: str, function: Callable[[], str], environment: Mapping[str, str], prefix: str | None = None) -> None:
        """Call the function, with more environment variables, in a process of its own; InputError is its way to fail.

        prefix: stands before each line of its output; None = the name.
        """
        pipes = [os.pipe() for _ in range(3)]  # output, errors, what is returned
        sys.stdout.flush()
        sys.stderr.flush()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # or a handler of this process could run in the other
        try:
            pid = os.fork()
            if pid == 0:
                _become(function, environment, [write for _, write in pipes], blocked)
            job = self.running[name] = Job(name, pid, time.monotonic(), f"{name} | " if prefix is None else prefix)
            for (read, write), what in zip(pipes, ("out", "err", "text"), strict=True):
                os.close(write)
                self._selector.register(read, selectors.EVENT_READ, (job, what, bytearray()))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def ended(self) -> Iterator[Ended]:
        """Pass output on until a process ends, or a moment has passed; yield those that ended."""
        for key, _ in self._selector.select(POLL_S):
            self._read(key)
        for job in list(self.running.values()):
            pid, status = os.waitpid(job.pid, os.WNOHANG)
            if pid:
                yield self._end(job, status)

    def stop(self) -> list[Ended]:
        """End all processes and what they started, politely first, and return those that had finished meanwhile."""
        finished, begun = [], time.monotonic()
        while self.running:
            for job in self.running.values():
                _signal(job.pid, signal.SIGTERM if time.monotonic() - begun < KILL_S else signal.SIGKILL)
            time.sleep(TERMINATE_S)
            finished += self.ended()
        return finished

    def _read(self, key: selectors.SelectorKey) -> None:
        job, what, line = key.data
        chunk = os.read(key.fd, 2**16)
        if what == "text":
            job.text += chunk
        else:
            *whole, rest = bytes(line + chunk).split(b"\n")
            line[:] = rest
            for text in [*whole, rest] if not chunk else whole:
                _pass_on(job, text.decode(errors="replace").rpartition("\r")[2].rstrip(), what)
        if not chunk:
            self._selector.unregister(key.fd)
            os.close(key.fd)

    def _end(self, job: Job, status: int) -> Ended:
        for key in [key for key in self._selector.get_map().values() if key.data[0] is job]:
            os.set_blocking(key.fd, False)
            try:
                while key.fd in self._selector.get_map():
                    self._read(key)
            except BlockingIOError:  # a process that it left behind holds the pipe
                self._selector.unregister(key.fd)
                os.close(key.fd)
        del self.running[job.name]
        _signal(job.pid, signal.SIGKILL)  # what it left behind
        returned = job.text.decode() if status == 0 else None
        return Ended(job.name, time.monotonic() - job.begun, returned, list(job.said))


def _pass_on(job: Job, line: str, what: str) -> None:
    if line:
        job.said.append(line)
        print(f"{job.prefix}{line}", file=sys.stderr if what == "err" else sys.stdout, flush=True)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone, or not yet a group of its own
        os.killpg(group, number)


def _become(function: Callable[[], str], environment: Mapping[str, str], pipes: list[int], blocked: Iterable) -> None:
    """The forked process: call the function, return its text through the last pipe, and end. It never returns.

    The process itself does not mind SIGTERM, so that DVC is not cut off while it writes; commands that it starts do, and the
    function ends by their failure.
    """
    status = 1
    try:
        os.setsid()
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which commands would inherit
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(pipes[0], 1)
        os.dup2(pipes[1], 2)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        os.environ.update(environment)
        returned = function().encode()
        while returned:
            returned = returned[os.write(pipes[2], returned):]
        status = 0
    except InputError as error:
        print(f"ERROR: {error}", file=sys.stderr)
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
