"""CPU time of whole processes, a steadier measure than duration: python -m quant.benches.startup [COMMAND ...]

A command is what follows `python -m`, in quotes: "stages.evaluate int4". Without any, the help of every stage and the imports of
the large libraries are measured. Each runs once to fill the caches, then ROUNDS times; the least is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from quant.command import Parser, run, whole_number
from quant.errors import InputError

LIBRARIES = ("torch", "numba", "transformers", "quant.runners.runtimes.transformers", "bitsandbytes", "matplotlib.pyplot")


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a process that runs Python with these arguments. Raises InputError if it fails."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"python {' '.join(command)} ended with {process.returncode}; expected 0: run it alone to see why")
    return used.ru_utime + used.ru_stime


def main(words: list[str]) -> None:
    parser = Parser(prog="python -m quant.benches.startup", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help='what follows `python -m`, such as "stages.evaluate int4"')
    parser.add_argument("--rounds", type=whole_number, default=3, help="measurements of each (3)")
    given = parser.parse_args(words)
    commands = [["-m", *command.split()] for command in given.commands] or [
        *(["-c", f"import {library}"] for library in LIBRARIES),
        *(["-m", f"stages.{path.stem}", "--help"] for path in sorted(Path("stages").glob("[a-z]*.py"))),
    ]
    for command in commands:
        cpu_seconds(command)
        print(f"{min(cpu_seconds(command) for _ in range(given.rounds)):7.2f} s  {' '.join(command)}", flush=True)


if __name__ == "__main__":
    run(main)
