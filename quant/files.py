"""Writes files and folders atomically: beside the target first, then renamed, so that they are complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file replaces `path` if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
