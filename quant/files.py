"""Writes files and folders atomically: beside the target first, then renamed, so that they are complete or absent."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import resource
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from quant.errors import InputError, printable

TOKEN = "[0-9a-f]" * 8  # in the name of a partial file or folder, as a pattern
AT_CWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` if the block ends without an error; the old one stays until then.

    Of two writers of one folder the second waits, and says for whom. What a killed writer left is removed. Raises InputError,
    before the block runs, where `path` is no folder.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"{path} is {'a link' if path.is_symlink() else 'a file'}; expected a folder, or nothing; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer(path):
        aside = path.with_name(f".{path.name}.aside.partial")
        if aside.is_dir() and not path.exists():  # a killed writer had moved the old one aside
            aside.rename(path)
        for stale in path.parent.glob(f".{escape(path.name)}.{TOKEN}.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        partial.mkdir()
        try:
            yield partial
            _flush(partial)
            _replace_folder(partial, path, aside)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file replaces `path` if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{escape(path.name)}.{TOKEN}.*.partial"):
        if not runs(stale.suffixes[-2].removeprefix(".")):
            stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`; wait, and say for whom, while another process holds it. It is removed at the end."""
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with open(lock, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = printable(file.read(), 200) or "another process"
                print(f"{path} is being written by {holder}; waiting until it ends", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not lock.exists() or lock.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # the one before removed this file at its end
            file.truncate(0)
            file.write(f"process {os.getpid()} ({' '.join(sys.argv)})")
            file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _replace_folder(new: Path, path: Path, aside: Path) -> None:
    """Put the folder `new` in the place of `path`, at once where the file system can exchange two names."""
    if path.is_dir():
        exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux's
        if exchange and exchange(AT_CWD, os.fsencode(new), AT_CWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
            return  # `new` is the old one now, which the caller removes
        path.rename(aside)
    new.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def runs(process: str) -> bool:
    """Whether a process of this number runs."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    """Write JSON with sorted keys and a fixed layout, so that equal values give equal bytes. Raises ValueError for NaN."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, about: dict) -> None:
    """Write manifest.json: `about`, and the size and SHA-256 of every other file of the folder."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "manifest.json")
    files = {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths
    }
    write_json(Path(folder) / "manifest.json", {**about, "files": files})


def _flush(folder: Path) -> None:
    """Write the folder's files through to the disk, so that a crash after the rename leaves none of them empty."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def require_space(path: Path, count: int) -> None:
    """Raise InputError if a file of `count` bytes has no room at `path`, which is then why another program failed."""
    free, limit = shutil.disk_usage(nearest_folder(path)).free, resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if free < count:
        raise InputError(f"{path} needs about {count / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free; free some space")
    if limit != resource.RLIM_INFINITY and limit < count:
        raise InputError(f"{path} needs about {count / 1e6:,.0f} MB, and ulimit -f allows {limit / 1e6:,.0f} MB; raise it")


def nearest_folder(path: Path) -> Path:
    """The nearest existing folder: the path itself, or one above it."""
    path = Path(path).absolute()
    return path if path.is_dir() else nearest_folder(path.parent)


def significant(value, digits: int = 6):
    """Round floats, inside lists and dicts too, to significant digits, for readable files and small diffs."""
    if isinstance(value, dict):
        return {key: significant(inner, digits) for key, inner in value.items()}
    if isinstance(value, list):
        return [significant(inner, digits) for inner in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
