"""Repair DVC's files after a kill: python -m quant.recover

DVC writes dvc.lock and .dvc/tmp/rwlock in place. A kill in the middle of that leaves an empty file, or dvc.lock cut at any line,
which DVC reads without a word as a run of fewer stages. So every stage first keeps a copy of dvc.lock (DVC does not write while a
stage runs), and this command, which `make repro` runs first, puts back the records that a cut one lacks. It also puts git back on
its branch after a kill of `dvc exp run`: see quant.interrupted.
"""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.command import run
from quant.errors import InputError
from quant.files import atomic_file, write_text
from quant.interrupted import BEGINNING, experiment_running, put_back

LOCK, DEFINITION, PARAMS, PRIVATE = Path("dvc.lock"), Path("dvc.yaml"), Path("params.yaml"), Path(".dvc/tmp")
GOOD, CUT = PRIVATE / "dvc.lock.good", PRIVATE / "dvc.lock.cut"
RWLOCK, REPO_GUARD = PRIVATE / "rwlock", PRIVATE / "lock"
STILL_RUNS = "dvc exp run is still at work here"
HEAD = "schema: '2.0'\nstages:\n"
STAGE = re.compile(r"^  ([^\s#].*):\n", re.MULTILINE)


def keep_lock() -> None:
    """Copy dvc.lock beside DVC's temporary files, unless it is damaged or DVC writes it at the moment."""
    if not LOCK.is_file() or not PRIVATE.is_dir():
        return
    with _held(REPO_GUARD) as is_held:
        text = LOCK.read_text(encoding="utf-8", errors="replace") if is_held else ""
        good = _good()
        if text == good or _is_cut(text, good):
            return
        with atomic_file(GOOD) as partial:
            partial.write_text(text, encoding="utf-8")


def recover() -> list[str]:
    """Repair what a kill left of DVC's files, and say in a line each what was done. Nothing is touched while DVC writes."""
    with _held(REPO_GUARD) as is_held:
        done = put_back() if is_held else []
    for lock in (RWLOCK, BEGINNING):
        with _held(lock.with_name("rwlock.lock")) as is_held:
            if is_held and lock.is_file() and not _is_json(lock):
                write_text(lock, "{}")
                done.append(f"{lock} was cut by a kill; emptied, no process holds it")
    with _held(REPO_GUARD) as is_held:
        if not is_held or not LOCK.is_file():
            return done
        text, good = LOCK.read_text(encoding="utf-8", errors="replace"), _good()
        if _is_cut(text, good) and text != _committed():
            done.append(_repair(text, good))
    return done


def main(words: list[str]) -> None:
    if words:
        raise InputError(f"quant.recover takes no arguments; found {' '.join(words)}")
    for line in recover():
        print(line, flush=True)
    if process := experiment_running():
        print(f"{STILL_RUNS} (process {process}); begin another when it has ended", flush=True)


def _repair(text: str, good: str) -> str:
    """Write what is known of all stages to dvc.lock, and say so."""
    lacking = _lacking(text, good) or list(_stages(text).keys() - _whole_stages(text, good).keys())
    if not _stages(good) and not _whole_stages(text, good):
        LOCK.unlink()
        return f"{LOCK} was cut by a kill, before any stage had a record; removed"
    write_text(CUT, text)
    write_text(LOCK, _merged(text, good))
    some = f", such as {lacking[0]}" if lacking else ""
    return (f"{LOCK} was cut by a kill: {len(lacking)} of its stages had no whole record{some}; what {GOOD} has of them is put "
            f"back, the cut file is {CUT}")


def _is_cut(text: str, good: str) -> bool:
    """Whether a dvc.lock has a record that is not whole, or none of a stage that it had."""
    return not text.startswith(HEAD) or len(_whole_stages(text, good)) < max(1, len(_stages(text))) or bool(_lacking(text, good))


def _lacking(text: str, good: str) -> list[str]:
    """The stages of `good` that `text` has no whole record of, though dvc.yaml and params.yaml still have them."""
    kept, known = _whole_stages(text, good), _stages(good)
    return [name for name in known if name not in kept and _is_defined(name)]


def _merged(text: str, good: str) -> str:
    """The records of `good`, except where `text`, which is newer, has a whole one."""
    return HEAD + "".join(f"  {name}:\n{record}" for name, record in {**_stages(good), **_whole_stages(text, good)}.items())


def _whole_stages(text: str, good: str) -> dict[str, str]:
    """The records of `text`; a last one that was cut is left out."""
    kept = _stages(text)
    last = next(reversed(kept), None)
    if last is not None and not _is_whole(kept[last], _stages(good).get(last, "")):
        del kept[last]
    return kept


def _stages(text: str) -> dict[str, str]:
    """The records of a dvc.lock, as text, by stage."""
    pieces = STAGE.split(text.partition("\nstages:\n")[2])
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _is_whole(record: str, known: str) -> bool:
    """Whether a record ends where DVC ends one: with the size of an output, and the number of files of a folder.

    known: an earlier record of the stage, which has as many outputs, or "".
    """
    counts = [one.partition("    outs:\n")[2].count("    - path: ") for one in (record, known)]
    if counts[0] < counts[1]:
        return False
    last = record.rpartition("    - path: ")[2]
    ends = "nfiles:" if ".dir\n" in last else "size:"
    return "    outs:\n" in record and bool(re.search(rf"^      {ends} \d+\n\Z", last, re.MULTILINE))


def _is_defined(stage: str) -> bool:
    """Whether the project still has the stage: in dvc.yaml, and its row in params.yaml."""
    name, _, row = stage.partition("@")
    wanted = [(DEFINITION, f"^  {re.escape(name)}:"), *([(PARAMS, rf"\b{re.escape(row)}['\"]? *:")] if row else [])]
    return all(re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE) for path, pattern in wanted)


def _good() -> str:
    return GOOD.read_text(encoding="utf-8") if GOOD.is_file() else ""


def _committed() -> str | None:
    """dvc.lock in the last commit: a file that somebody checked out is whole, whatever earlier runs had."""
    try:
        found = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True, text=True, encoding="utf-8")
    except OSError:  # no git
        return None
    return found.stdout if found.returncode == 0 else None


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False


@contextmanager
def _held(guard: Path) -> Iterator[bool]:
    """Hold a lock of DVC's for a moment, if DVC doesn't: it locks the same files in the same way."""
    if not guard.parent.is_dir():
        yield False
        return
    with open(guard, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


if __name__ == "__main__":
    run(main)
